"""Batches as a pure function of the data index.

The sequences of an epoch come in a seeded order, those of a stream in the order of its text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from trainenv.data.corpus import Corpus, Growing, Indices, Split
from trainenv.data.stressors import Stressors, philox
from trainenv.types import Batch, UserError

STREAM_EPOCH = 10_000  # steps of an epoch of a stream whose length is unknown


@dataclass(frozen=True)
class CorpusBatches:
    """The batches of a run.

    The same index gives the same batch, in any order of calls and in any process.

    In an epoch each training sequence occurs at most once; the few that do not fill a last batch
    are left out, different ones in each epoch. The batches of a stream follow its text; at its end
    it starts again.

    Args:
        corpus: Corpus that sequences are cut from.
        context: Number of inputs of a sequence; it has one token more, the last target.
        batch_size: Number of sequences of a step.
        accumulation: Number of micro-batches of a step.
        seed: Random seed of the order of the sequences.
        stressors: Stressors that change batches; None for unchanged ones.

    Raises:
        UserError: There are too few training tokens for one batch.
    """

    corpus: Corpus
    context: int
    batch_size: int
    accumulation: int = 1
    seed: int = 0
    stressors: Stressors | None = None
    _memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulation "
                f"({self.accumulation})"
            )
        if self.epoch_steps < 1:
            raise _too_few(self.corpus, self.context, self.batch_size)
        factor = self._long_factor
        if factor > 1 and self.batch_size // self.accumulation % factor:
            raise UserError(
                "with long sequences, batch_size ÷ accumulation "
                f"({self.batch_size // self.accumulation}) must be a multiple of "
                f"stressors.long_factor ({factor})"
            )
        if factor > 1 and isinstance(self.corpus.train, Split):
            # Raises if long sequences do not fit.
            self.corpus.train.pulled_in(np.zeros(0, np.int64), factor * self.context + 1)

    def under(self, stressors: Stressors | None) -> CorpusBatches:
        """Return the same batches with these stressors."""
        return replace(self, stressors=stressors)

    @property
    def epoch_steps(self) -> int:
        """The number of data indices in an epoch."""
        if "epoch_steps" not in self._memo:
            self._memo["epoch_steps"] = epoch_steps(self.corpus, self.context, self.batch_size)
        steps: int = self._memo["epoch_steps"]
        return steps

    def __call__(self, index: int, /) -> Batch:
        """Return the batch of data index `index` ≥ 0.

        It has `accumulation` tensors [batch_size ÷ accumulation, context + 1], int64. Where the
        stressor `long_sequence` hits, the same tokens come as
        [batch_size ÷ accumulation ÷ long_factor, context · long_factor + 1].
        """
        names: tuple[str, ...] = ()
        factor = 1
        if self._long_factor > 1 and self.stressors is not None and self.stressors.is_long(index):
            factor = self._long_factor
            names = ("long_sequence",)
        tokens = self._tokens(index, factor)
        if self.stressors is not None:
            tokens, more = self.stressors(tokens, index)
            names += more
        rows = len(tokens) // self.accumulation
        whole = torch.from_numpy(tokens)
        micro = tuple(whole[start : start + rows] for start in range(0, len(tokens), rows))
        return Batch(micro=micro, index=index, stressors=names)

    def _tokens(self, index: int, factor: int) -> Indices:
        """Return the tokens [batch_size ÷ factor, factor · context + 1] of a batch."""
        length = factor * self.context + 1
        train = self.corpus.train
        if not isinstance(train, Split):
            return train.cut(self._stream_starts(train, index)[::factor], length)
        epoch, place = divmod(index, self.epoch_steps)
        first = place * self.batch_size
        starts = self._order(train, epoch)[first : first + self.batch_size : factor]
        if factor > 1:
            starts = train.pulled_in(starts, length)
        return train.cut(starts, length)

    def _order(self, train: Split, epoch: int) -> Indices:
        """Return the starts of an epoch's sequences in their order; the last epoch is kept."""
        kept: tuple[int, Indices] = self._memo.get("order", (-1, np.zeros(0, np.int64)))
        if kept[0] != epoch:
            kept = (
                epoch,
                philox(self.seed, "corpora/order", epoch).permutation(train.starts(self.context)),
            )
            self._memo["order"] = kept
        return kept[1]

    def _stream_starts(self, train: Growing, index: int) -> Indices:
        """Return the starts of a batch; its sequences, and the batches, follow the text."""
        stride = self.batch_size * self.context  # tokens
        if (there := train.grow((index + 1) * stride + 1)) <= (index + 1) * stride:
            if there <= stride:
                raise _too_few(self.corpus, self.context, self.batch_size)
            index %= (there - 1) // stride
        return index * stride + np.arange(0, stride, self.context, dtype=np.int64)

    @property
    def _long_factor(self) -> int:
        """Factor by which sequences may get longer; 1 without the stressor `long_sequence`."""
        if self.stressors is None or not self.stressors.config.lengthens:
            return 1
        return self.stressors.config.long_factor

    def __deepcopy__(self, memo: dict[int, Any]) -> CorpusBatches:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return CorpusBatches, (
            self.corpus,
            self.context,
            self.batch_size,
            self.accumulation,
            self.seed,
            self.stressors,
        )


def epoch_steps(corpus: Corpus, context: int, batch_size: int) -> int:
    """Return the number of data indices in an epoch.

    The epoch of a stream ends at its limit; without a limit it has `STREAM_EPOCH` steps.
    """
    if isinstance(corpus.train, Split):
        return len(corpus.train.starts(context)) // batch_size
    if corpus.train.limit is None:
        return STREAM_EPOCH
    return (corpus.train.limit - 1) // (context * batch_size)


def _too_few(corpus: Corpus, context: int, batch_size: int) -> UserError:
    train = corpus.train
    if isinstance(train, Split):
        found = (
            f"{len(train.starts(context))} of {context + 1} tokens in {train.size} training tokens"
        )
    else:
        needed = batch_size * context + 1
        found = f"a stream of {train.grow(needed)} tokens, where {needed} are needed"
    return UserError(
        f"expected at least {batch_size} training sequences in corpus {corpus.name}, one batch, "
        f"found {found}; give more text, or a smaller batch_size or context"
    )
