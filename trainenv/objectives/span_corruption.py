"""Span corruption: predict the tokens of spans that the input lacks (Raffel 2020, T5).

Of L tokens, round(0.15 L) are noise, in round(noise ÷ 3) spans. Noise and other tokens are each
split into that many non-empty spans, each split equally probable. The two kinds alternate, and the
first span is a kept one. Each noise span becomes one sentinel token in the inputs; in the
targets each kept span does, so that the k-th sentinel precedes the k-th noise span:

    tokens     Thank you for inviting me to your party last
    inputs     Thank you <X> me to your party <Y> <end>
    targets    <X> for inviting <Y> last <end>

Both counts follow from L alone: all inputs have one length, and all targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv.types import UserError

Tokens = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
EXTRA = 2  # tokens of the vocabulary that are neither text nor sentinels: the start and the end


class Lengths(NamedTuple):
    """Numbers of tokens that belong together.

    Attributes:
        tokens: Length of the text of a sequence.
        noise: Number of its tokens that are noise.
        spans: Number of noise spans.
        inputs: Length of the inputs: kept tokens, sentinels and the end.
        targets: Length of the targets: noise, sentinels and the end.
    """

    tokens: int
    noise: int
    spans: int
    inputs: int
    targets: int


@dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Mean cross-entropy of the targets of span corruption, sentinels and end included.

    The vocabulary is that of the text, then the start of the targets, the end of a sequence, and
    the sentinels. The first sentinel is the last token, the next one the token before it.

    Args:
        text_vocabulary: Number of tokens of the text.
        sentinels: Number of sentinels: the most spans of a sequence.
        share: Share of the tokens that are noise, above 0 and below 1.
        mean_span: Mean length of a noise span in tokens, at least 1.

    Raises:
        UserError: A number is out of range.
    """

    text_vocabulary: int
    sentinels: int
    share: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and self.mean_span >= 1 and self.sentinels >= 1):
            raise UserError(
                "span corruption needs 0 < share < 1, mean_span ≥ 1 and sentinels ≥ 1, found "
                f"{self!r}; leave share and mean_span out to use the defaults"
            )

    @property
    def start(self) -> int:
        """Token that the decoder reads before the first target."""
        return self.text_vocabulary

    @property
    def end(self) -> int:
        """Token after the last token of inputs and targets."""
        return self.text_vocabulary + 1

    @property
    def vocabulary(self) -> int:
        """Number of all tokens."""
        return self.text_vocabulary + EXTRA + self.sentinels

    def corrupt(self, tokens: Tokens, generator: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Return inputs [n, I] and targets [n, O] of sequences of text, int64.

        Args:
            tokens: Tokens of each sequence, int64 [n, L].
            generator: Source of the random spans.

        Raises:
            UserError: Sequences are so long that they have more spans than there are sentinels.
        """
        lengths = lengths_of(tokens.shape[1], self.share, self.mean_span)
        if lengths.spans > self.sentinels:
            raise UserError(
                f"expected at most {self.sentinels} spans, one for each sentinel, found "
                f"{lengths.spans} in sequences of {lengths.tokens} tokens; take more sentinels"
            )
        noise = noise_mask(len(tokens), lengths, generator)
        return self._marked(tokens, noise), self._marked(tokens, ~noise)

    def __call__(self, model: nn.Module, micro: Any, /) -> Tensor:
        """Return the loss of a micro-batch as a scalar, in nats per target.

        It is computed in float32, also under autocast.

        Args:
            model: Encoder-decoder: `model(input_ids=…, decoder_input_ids=…)` returns logits
                [B, O, V], bare or as the `logits` of a transformers output.
            micro: Mapping with `input_ids` [B, I] and `labels` [B, O], int64.
        """
        labels: Tensor = micro["labels"]
        start = torch.full_like(labels[:, :1], self.start)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)  # (B, O)
        output = model(input_ids=micro["input_ids"], decoder_input_ids=shifted)
        logits = getattr(output, "logits", output)  # (B, O, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    def _marked(self, tokens: Tokens, replaced: Mask) -> Tokens:
        """Put a sentinel in place of each run of replaced tokens, and the end after the last."""
        before = np.pad(replaced, ((0, 0), (1, 0)))[:, :-1]
        first = replaced & ~before  # (n, L)
        sentinels = self.vocabulary - np.cumsum(first, axis=1)
        marked = np.where(first, sentinels, tokens)[first | ~replaced].reshape(len(tokens), -1)
        return np.pad(marked, ((0, 0), (0, 1)), constant_values=self.end)


def noise_mask(rows: int, lengths: Lengths, generator: np.random.Generator) -> Mask:
    """Return a mask of the noise [rows, L], a random one in each row."""
    noise = _segments(lengths.noise, lengths.spans, rows, generator)
    kept = _segments(lengths.tokens - lengths.noise, lengths.spans, rows, generator)
    borders = np.stack([kept, noise], axis=2).reshape(rows, -1).cumsum(axis=1)  # (rows, 2 · spans)
    starts = np.zeros((rows, lengths.tokens), np.int64)
    np.put_along_axis(starts, borders[:, :-1], 1, axis=1)
    mask: Mask = starts.cumsum(axis=1) % 2 == 1
    return mask


@lru_cache(maxsize=64)
def lengths_of(tokens: int, share: float, mean_span: float) -> Lengths:
    """Return the numbers of a sequence of `tokens` tokens of text, at least 2."""
    noise = min(max(round(tokens * share), 1), tokens - 1)
    spans = max(round(min(noise, tokens - noise) / mean_span), 1)
    return Lengths(
        tokens=tokens,
        noise=noise,
        spans=spans,
        inputs=tokens - noise + spans + 1,
        targets=noise + spans + 1,
    )


@lru_cache(maxsize=64)
def lengths_for(inputs: int, share: float, mean_span: float) -> Lengths:
    """Return the numbers of the longest sequence whose inputs have at most `inputs` tokens.

    Raises:
        UserError: There is none.
    """
    found = lengths_of(2, share, mean_span)
    if found.inputs > inputs:
        raise UserError(
            f"expected inputs of at least {found.inputs} tokens for span corruption, found "
            f"{inputs}; take a larger model.context"
        )
    while (longer := lengths_of(found.tokens + 1, share, mean_span)).inputs <= inputs:
        found = longer
    return found


def _segments(items: int, segments: int, rows: int, generator: np.random.Generator) -> Tokens:
    """Split `items` into non-empty segments; return their lengths, [rows, segments]."""
    marks = np.tile(np.arange(items - 1) < segments - 1, (rows, 1))
    borders = np.nonzero(generator.permuted(marks, axis=1))[1].reshape(rows, segments - 1) + 1
    return np.diff(borders, axis=1, prepend=0, append=items)
