"""Shards: texts with what the target expects after each token, to learn from more than once.

One half of the shards has pieces of a corpus, the other texts that the target has sampled after
prompts of the corpus: a draft meets both. Of each distribution the most likely tokens are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainenv.decoding.reader import Reader
from trainenv.tools.tensor_file.arrays import ArrayFormat
from trainenv.tools.tensor_file.chunks import BrokenFile, Kind


class BrokenShard(BrokenFile):
    """A shard's file that is torn, damaged or of another format."""


_FORMAT = ArrayFormat(kind=Kind(name="distillation shard", broken=BrokenShard), version=1)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Texts and the target's distributions.

    Attributes:
        tokens: Tokens of each text, int64 [B, T].
        likely: The most likely next tokens after each token, int64 [B, T, K].
        log_probabilities: Natural logarithms of their probabilities, float32 [B, T, K].
    """

    tokens: Tensor
    likely: Tensor
    log_probabilities: Tensor

    def save(self, path: Path, made: str) -> None:
        """Write the shard, whole or not at all.

        Args:
            path: Place of the file.
            made: Digest of what the shard was made of.

        Raises:
            UserError: The disk is full or fails.
        """
        arrays: dict[str, NDArray[Any]] = {
            "tokens": self.tokens.numpy().astype(np.int32),
            "likely": self.likely.numpy().astype(np.int32),
            "log_probabilities": self.log_probabilities.numpy().astype(np.float16),
        }
        _FORMAT.save(path, {"made": made}, arrays)

    @classmethod
    def load(cls, path: Path, made: str) -> Shard | None:
        """Read a shard; None if it is not there, damaged, or made of something else."""
        if not path.exists():
            return None
        try:
            fields, arrays = _FORMAT.load(path)
        except BrokenShard:
            return None
        if fields.get("made") != made:
            return None
        return cls(
            tokens=torch.from_numpy(arrays["tokens"].astype(np.int64)),
            likely=torch.from_numpy(arrays["likely"].astype(np.int64)),
            log_probabilities=torch.from_numpy(arrays["log_probabilities"].astype(np.float32)),
        )


def read_pieces(target: nn.Module, pieces: Sequence[Sequence[int]], top_k: int) -> Shard:
    """Return what the target expects in pieces of a corpus.

    Args:
        target: Causal LM of transformers, in evaluation mode.
        pieces: Tokens of each piece, of one length.
        top_k: Probabilities kept of each distribution.
    """
    model: Any = target
    tokens = torch.tensor(pieces)
    with torch.no_grad():
        likely, logs = _most_likely(model(tokens, use_cache=False).logits, top_k)
    return Shard(tokens=tokens, likely=likely, log_probabilities=logs)


def sample_texts(
    target: nn.Module, prompts: Sequence[Sequence[int]], length: int, top_k: int, seed: int
) -> Shard:
    """Return texts that the target samples at temperature 1, and what it expects in them.

    Args:
        target: Causal LM of transformers with a cache, in evaluation mode.
        prompts: Tokens of each prompt, of one length.
        length: Tokens of a text, its prompt among them.
        top_k: Probabilities kept of each distribution.
        seed: Random seed of the texts.
    """
    reader = Reader(target, cached=True, role="target").fresh()
    generator = torch.Generator().manual_seed(seed)
    rows = [list(prompt) for prompt in prompts]
    names = tuple(range(len(rows)))
    starts = [0] * len(rows)
    found: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        while True:
            read = len(rows[0]) - starts[0]
            logits = reader.read(rows, names, starts, keep=read)
            found.append(_most_likely(logits, top_k))
            if len(rows[0]) == length:
                break
            law = torch.softmax(logits[:, -1].float(), -1)
            starts = [len(row) for row in rows]
            new = torch.multinomial(law, 1, generator=generator)[:, 0].tolist()
            rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
    return Shard(
        tokens=torch.tensor(rows),
        likely=torch.cat([likely for likely, _ in found], 1),
        log_probabilities=torch.cat([logs for _, logs in found], 1),
    )


def _most_likely(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the most likely tokens [B, T, K] and the logarithms of their probabilities."""
    logits = logits.float()
    values, likely = logits.topk(min(top_k, logits.shape[-1]), -1)
    return likely, values - logits.logsumexp(-1, keepdim=True)
