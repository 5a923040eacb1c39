"""Batches of labelled samples as a pure function of the data index.

The form of a micro-batch is described in `trainenv.objectives`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from trainenv.config.tasks import SampleSet
from trainenv.data.corpus import Indices
from trainenv.data.stressors import philox
from trainenv.data.tokenizers import IntArray
from trainenv.types import IGNORED, Batch, UserError

_CURRICULUM_NOISE = 0.25  # share of the epoch by which a sample's place may differ from its rank

Micro = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class EncodedSamples:
    """Samples as tokens; they are immutable, and copies share them.

    Args:
        tokens: Tokens of each sample, its end token included: n arrays of different lengths.
        prompts: Number of tokens of each prompt [n], int64.
        rewards: Reward of each sample [n], float32: 1 right, 0 wrong, NaN unknown.
        difficulties: Difficulty of each sample [n], float64.
        padding: Token after the end of shorter samples.
    """

    tokens: Sequence[IntArray] = field(repr=False)
    prompts: Indices = field(repr=False)
    rewards: np.ndarray = field(repr=False)
    difficulties: np.ndarray = field(repr=False)
    padding: int

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def lengths(self) -> Indices:
        """Number of tokens of each sample [n]."""
        return np.array([len(tokens) for tokens in self.tokens], np.int64)

    def fitting(self, context: int) -> Indices:
        """Return the indices of the samples of at most `context` + 1 tokens, ascending."""
        return np.flatnonzero(self.lengths <= context + 1)

    def micro_batch(self, indices: Sequence[int] | Indices, context: int) -> Micro:
        """Return samples as a micro-batch of `context` + 1 tokens a row."""
        shape = (len(indices), context + 1)
        tokens = np.full(shape, self.padding, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        for row, index in enumerate(indices):
            found = self.tokens[index]
            prompt = self.prompts[index]
            tokens[row, : len(found)] = found
            labels[row, prompt : len(found)] = found[prompt:]
        rewards = self.rewards[np.asarray(indices, np.int64)].astype(np.float32)
        return {
            "tokens": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "reward": torch.from_numpy(rewards),
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> EncodedSamples:
        return self


@dataclass(frozen=True, eq=False)
class SampleBatches:
    """The batches of a run on samples.

    The same index gives the same batch, in any order of calls and in any process. In an epoch each
    sample occurs at most once. In a balanced set, right and wrong samples take turns in the rows of
    a batch.

    Args:
        samples: Samples to train on.
        context: Number of inputs of a row; it has one token more, the last target.
        batch_size: Number of samples of a step.
        accumulation: Number of micro-batches of a step.
        seed: Random seed of the order.
        kind: Sample set.

    Raises:
        UserError: There are too few samples for one batch, or the batch can't be balanced.
    """

    samples: EncodedSamples
    context: int
    batch_size: int
    accumulation: int = 1
    seed: int = 0
    kind: SampleSet = "right"
    _memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulation "
                f"({self.accumulation})"
            )
        if self.kind != "right" and self.batch_size % 2:
            raise UserError(
                f"a balanced batch needs an even batch_size, found {self.batch_size}; "
                "give an even one, or set tasks.samples: right"
            )
        if self.epoch_steps < 1:
            sizes = " and ".join(str(len(group)) for group in self._groups)
            raise UserError(
                f"expected samples of at most {self.context + 1} tokens for one batch of "
                f"{self.batch_size}, found {sizes}; give more samples (tasks.scale), or a larger "
                "model.context or a smaller batch_size"
            )

    @cached_property
    def _groups(self) -> tuple[Indices, ...]:
        """Indices of the samples that fit: those of one set, or the right and the wrong ones."""
        fitting = self.samples.fitting(self.context)
        rewards = self.samples.rewards[fitting]
        if self.kind == "right":
            return (fitting[rewards == 1],)
        return fitting[rewards == 1], fitting[rewards == 0]

    @property
    def epoch_steps(self) -> int:
        """The number of data indices in an epoch."""
        groups = self._groups
        return min(len(group) for group in groups) // (self.batch_size // len(groups))

    def __call__(self, index: int, /) -> Batch:
        """Return the batch of data index `index` ≥ 0, in `accumulation` micro-batches."""
        epoch, place = divmod(index, self.epoch_steps)
        orders = self._orders(epoch)
        share = self.batch_size // len(orders)
        parts = [order[place * share : (place + 1) * share] for order in orders]
        rows = np.stack(parts, axis=1).reshape(-1)  # right, wrong, right, …
        micro = tuple(
            self.samples.micro_batch(part, self.context)
            for part in rows.reshape(self.accumulation, -1)
        )
        return Batch(micro=micro, index=index)

    def _orders(self, epoch: int) -> tuple[Indices, ...]:
        """Return each group in the order of an epoch; the last epoch is kept."""
        kept: tuple[int, tuple[Indices, ...]] = self._memo.get("orders", (-1, ()))
        if kept[0] != epoch:
            groups = enumerate(self._groups)
            kept = (epoch, tuple(self._order(group, epoch, number) for number, group in groups))
            self._memo["orders"] = kept
        return kept[1]

    def _order(self, group: Indices, epoch: int, number: int) -> Indices:
        random = philox(self.seed, f"samples/order/{number}", epoch)
        if self.kind != "curriculum" or epoch:
            return random.permutation(group)
        shuffled = random.permutation(group)
        ranks = np.argsort(self.samples.difficulties[shuffled], kind="stable").argsort()
        noise = random.uniform(-_CURRICULUM_NOISE, _CURRICULUM_NOISE, len(group))
        return shuffled[np.argsort(ranks / len(group) + noise, kind="stable")]

    def __deepcopy__(self, memo: dict[int, Any]) -> SampleBatches:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleBatches, (
            self.samples,
            self.context,
            self.batch_size,
            self.accumulation,
            self.seed,
            self.kind,
        )
