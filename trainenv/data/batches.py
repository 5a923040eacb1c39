"""Batches as a pure function of the data index: an epoch's sequences in a seeded order, a stream's in its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from trainenv.data.corpus import Corpus, Growing, Indices, Split
from trainenv.data.stressors import Stressors, philox
from trainenv.types import Batch, UserError

STREAM_EPOCH = 10_000  # steps that count as an epoch of a stream whose length is unknown


@dataclass(frozen=True)
class CorpusBatches:
    """The batches of a run.

    Calling it twice with one index gives the same batch, in any order and any process.

    In an epoch each training sequence comes once at most: those that do not fill a last batch,
    other ones each time, wait. The batches of a stream are its text in its own order; where it
    ends, it starts again.

    Args:
        corpus: where sequences come from.
        context: inputs of a sequence; it has one token more, the last target.
        batch_size: sequences of a step.
        accumulation: micro-batches that they come in.
        seed: of the order of the sequences.
        stressors: what is done to batches, if anything.

    Raises:
        UserError: too few training tokens for one batch.
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
                f"batch_size ({self.batch_size}) must be a multiple of accumulation ({self.accumulation})"
            )
        if self.epoch_steps < 1:
            raise _too_few(self.corpus, self.context, self.batch_size)
        factor = self._long_factor
        if factor > 1 and self.batch_size // self.accumulation % factor:
            raise UserError(
                f"with long sequences, batch_size ÷ accumulation ({self.batch_size // self.accumulation}) must be a multiple of "
                f"stressors.long_factor ({factor})"
            )
        if factor > 1 and isinstance(self.corpus.train, Split):
            self.corpus.train.pulled_in(
                np.zeros(0, np.int64), factor * self.context + 1
            )  # raises where they do not fit

    def under(self, stressors: Stressors | None) -> CorpusBatches:
        """The same batches under these stressors."""
        return replace(self, stressors=stressors)

    @property
    def epoch_steps(self) -> int:
        """Data indices in an epoch."""
        if "epoch_steps" not in self._memo:
            self._memo["epoch_steps"] = epoch_steps(self.corpus, self.context, self.batch_size)
        steps: int = self._memo["epoch_steps"]
        return steps

    def __call__(self, index: int, /) -> Batch:
        """The batch of data index `index` ≥ 0: `accumulation` tensors [batch_size ÷ accumulation, context + 1], int64.

        Where a long sequence hits, the same number of tokens comes as [… ÷ long_factor, context ·
        long_factor + 1].
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
        """[batch_size ÷ factor, factor · context + 1]"""
        length = factor * self.context + 1
        train = self.corpus.train
        if not isinstance(train, Split):
            return train.cut(self._stream_starts(train, index)[::factor], length)
        epoch, place = divmod(index, self.epoch_steps)
        starts = self._order(train, epoch)[
            place * self.batch_size : (place + 1) * self.batch_size : factor
        ]
        return train.cut(starts if factor == 1 else train.pulled_in(starts, length), length)

    def _order(self, train: Split, epoch: int) -> Indices:
        """The starts of an epoch's sequences in its order; kept for the last epoch asked for."""
        kept: tuple[int, Indices] = self._memo.get("order", (-1, np.zeros(0, np.int64)))
        if kept[0] != epoch:
            kept = (
                epoch,
                philox(self.seed, "corpora/order", epoch).permutation(train.starts(self.context)),
            )
            self._memo["order"] = kept
        return kept[1]

    def _stream_starts(self, train: Growing, index: int) -> Indices:
        """The sequences of a batch follow one another in the text, and so do the batches."""
        stride = self.batch_size * self.context  # tokens
        if (there := train.grow((index + 1) * stride + 1)) <= (index + 1) * stride:
            if there <= stride:
                raise _too_few(self.corpus, self.context, self.batch_size)
            index %= (there - 1) // stride
        return index * stride + np.arange(0, stride, self.context, dtype=np.int64)

    @property
    def _long_factor(self) -> int:
        """How much longer sequences may get; 1 where none does."""
        config = self.stressors.config if self.stressors is not None else None
        return config.long_factor if config is not None and config.lengthens else 1

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
    """Data indices in an epoch.

    Of a stream: up to its limit, and `STREAM_EPOCH` where it has none.
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
        found = f"a stream of {train.grow(batch_size * context + 1)} tokens, where {batch_size * context + 1} are needed"
    return UserError(
        f"expected at least {batch_size} training sequences in corpus {corpus.name}, one batch, found {found}; "
        "give more text, or a smaller batch_size or context"
    )
