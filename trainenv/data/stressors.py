"""Stressors: recorded changes of batches that provoke instability.

Each is a pure function of (tokens, data index, seed). A stressor hits an index where a uniform
random number from its own stream is below its rate. Stressors are therefore independent of each
other, and a higher rate hits all indices that a lower one hits. Planted events always hit.

| stressor | effect on a batch | `Plant.size` (default: 1) | size if random |
|---|---|---|---|
| `rare_tokens` | runs of 16 tokens replaced by rare tokens | share of positions | 0.5 |
| `long_sequence` | same tokens in fewer, `long_factor` times longer sequences | none | |
| `artefacts` | runs of 8 become mojibake; tokens dropped or doubled | share of positions | 0.25 |
| `block_shuffle` | blocks of 16 tokens shuffled within each sequence | share of blocks | 1 |
| `random_tokens` | runs of 16 tokens replaced by uniform ones | share of positions | never |
| `lr_spike` | none; the learning rate of the steps is multiplied | factor | never |
| `lost_moments` | none; the optimizer loses its moments, as after a bad restart | none | never |

Shares are at most 1. The rate of `block_shuffle` is a share of each epoch: the batches of one
contiguous stretch of that length are shuffled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from trainenv.config.schema import PlantKind, StressorConfig

Tokens = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Stressors that change tokens, in the order in which they are applied.
TOKEN_KINDS: tuple[PlantKind, ...] = ("block_shuffle", "artefacts", "rare_tokens", "random_tokens")
DRAWN_SIZE: dict[PlantKind, float] = {"block_shuffle": 1.0, "artefacts": 0.25, "rare_tokens": 0.5}
RUN = {"artefacts": 8, "rare_tokens": 16, "random_tokens": 16}  # tokens
BLOCK = 16  # tokens that stay together when blocks are shuffled
_DRAWN_TOGETHER = 1024  # indices


def philox(seed: int, purpose: str, place: int) -> np.random.Generator:
    """Return an independent generator for each (seed, purpose, place).

    Philox is a function of key and counter (Salmon et al. 2011).
    """
    key = np.array([seed, xxhash.xxh3_64_intdigest(purpose.encode())], np.uint64)
    # The place is the third word of the counter. Drawing increments the first word, so two places
    # never reach the same counter.
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, place, 0]))


@dataclass(frozen=True, eq=False)
class Stressors:
    """The stressors of a run.

    Args:
        config: Rates, sizes and planted events.
        rare: Rare tokens for bursts [n].
        artefacts: Tokens of a badly encoded text, in order [n].
        vocab_size: Number of tokens that random tokens are drawn from.
        seed: Random seed.
        epoch_steps: Data indices in an epoch, for the stretch of `block_shuffle`.
    """

    config: StressorConfig
    rare: npt.NDArray[np.integer[Any]] = field(repr=False)
    artefacts: npt.NDArray[np.integer[Any]] = field(repr=False)
    vocab_size: int
    seed: int
    epoch_steps: int

    def __call__(self, tokens: Tokens, index: int) -> tuple[Tokens, tuple[str, ...]]:
        """Return the changed tokens of a batch, and the names of the stressors that changed them.

        Args:
            tokens: Tokens [B, T + 1], int64; not modified.
            index: Data index, at least 0.
        """
        names = []
        for kind in self._active:
            size = self.size(kind, index)
            if size > 0:
                names.append(kind)
                tokens = self._stress(
                    tokens, kind, min(size, 1.0), philox(self.seed, f"stressors/{kind}/how", index)
                )
        return tokens, tuple(names)

    def is_long(self, index: int) -> bool:
        """Tell if the batch of `index` has to be cut into fewer, longer sequences."""
        return self.size("long_sequence", index) > 0

    def lr_factor(self, step: int) -> float:
        """Return the factor on the learning rate of the step after `step` completed ones.

        It is the product of the harsh warm-up and the planted spikes.
        """
        factor = 1.0
        if step < self.config.harsh_warmup_steps:
            factor = self.config.harsh_warmup_lr
        spikes = (
            plant.size
            for plant in self.config.planted
            if plant.kind == "lr_spike" and 0 <= step - plant.at < plant.steps
        )
        return math.prod(spikes, start=factor)

    def moments_lost(self, step: int) -> bool:
        """Tell if the optimizer loses its moments before the step after `step` completed ones."""
        return self.size("lost_moments", step) > 0

    def size(self, kind: PlantKind, index: int) -> float:
        """Return the strength of `kind` on the batch of `index`; 0 where it does not hit.

        The strongest planted event takes precedence over a random hit.
        """
        planted = [
            plant.size
            for plant in self.config.planted
            if plant.kind == kind and 0 <= index - plant.at < plant.steps
        ]
        if planted:
            return max(planted)
        if not self._drawn(kind, index):
            return 0.0
        return DRAWN_SIZE.get(kind, 1.0)

    def _drawn(self, kind: PlantKind, index: int) -> bool:
        rate = self._rates.get(kind, 0.0)
        if rate <= 0:
            return False
        if kind != "block_shuffle":
            return (
                _uniforms(self.seed, kind, index // _DRAWN_TOGETHER)[index % _DRAWN_TOGETHER] < rate
            )
        epoch, place = divmod(index, self.epoch_steps)
        length = math.ceil(rate * self.epoch_steps - 1e-9)
        # The start is a fixed share of the room that the stretch leaves, so that a longer stretch
        # contains every shorter one.
        start = int(
            _uniforms(self.seed, kind, epoch // _DRAWN_TOGETHER)[epoch % _DRAWN_TOGETHER]
            * (self.epoch_steps - length)
        )
        return start <= place < start + length

    @cached_property
    def _rates(self) -> dict[str, float]:
        names = ("rare_tokens", "long_sequence", "artefacts", "block_shuffle")
        return {name: rate for name in names if (rate := getattr(self.config, name)) > 0}

    @cached_property
    def _active(self) -> tuple[PlantKind, ...]:
        planted = {plant.kind for plant in self.config.planted}
        return tuple(kind for kind in TOKEN_KINDS if kind in planted or kind in self._rates)

    def _stress(
        self, tokens: Tokens, kind: PlantKind, share: float, rng: np.random.Generator
    ) -> Tokens:
        if kind == "block_shuffle":
            return _shuffle_blocks(tokens, share, rng)
        mask = _runs(tokens.shape, share, RUN[kind], rng)
        if kind == "rare_tokens":
            return np.where(mask, rng.choice(self.rare, tokens.shape), tokens).astype(np.int64)
        if kind == "random_tokens":
            return np.where(mask, rng.integers(self.vocab_size, size=tokens.shape), tokens)
        # Each sequence starts at a random place of the badly encoded text; runs copy parts of it.
        places = (
            rng.integers(len(self.artefacts), size=(len(tokens), 1)) + np.arange(tokens.shape[1])
        ) % len(self.artefacts)
        return _shift(np.where(mask, self.artefacts[places], tokens).astype(np.int64), share, rng)


@lru_cache(maxsize=256)
def _uniforms(seed: int, kind: str, block: int) -> list[float]:
    """Return the uniform numbers of `_DRAWN_TOGETHER` indices (`block_shuffle`: epochs).

    They are drawn together because one draw costs 15 µs.
    """
    drawn: list[float] = (
        philox(seed, f"stressors/{kind}/whether", block).random(_DRAWN_TOGETHER).tolist()
    )
    return drawn


def _runs(shape: tuple[int, ...], share: float, run: int, rng: np.random.Generator) -> Mask:
    """Return a mask [B, L] of about `share` of the positions.

    Each row has at least one run of `run` positions; the runs have a random start.
    """
    rows, length = shape
    count = -(-length // run)
    ranks = rng.random((rows, count)).argsort(axis=1)
    mask = np.repeat(ranks < max(1, round(share * count)), run, axis=1)  # (B, count · run)
    offset = int(rng.integers(run))
    return np.roll(mask, offset, axis=1)[:, :length]


def _shuffle_blocks(tokens: Tokens, share: float, rng: np.random.Generator) -> Tokens:
    """Shuffle the blocks of each row, or a random `share` of them, at least two.

    Tokens after the last whole block stay in place.
    """
    rows, length = tokens.shape
    count = length // BLOCK
    if count < 2:
        return tokens
    order = np.tile(np.arange(count), (rows, 1))
    for row in order:
        moved = rng.permutation(count)[: max(2, round(share * count))]
        row[np.sort(moved)] = moved
    whole = tokens[:, : count * BLOCK].reshape(rows, count, BLOCK)
    shuffled = np.take_along_axis(whole, order[:, :, None], axis=1).reshape(rows, count * BLOCK)
    return np.concatenate([shuffled, tokens[:, count * BLOCK :]], axis=1)


def _shift(tokens: Tokens, share: float, rng: np.random.Generator) -> Tokens:
    """Drop tokens and double as many others, up to 1 in 8 of each, so that the rest is shifted."""
    rows, length = tokens.shape
    count = max(1, round(share * length / 8))
    shifted = np.empty_like(tokens)
    for row in range(rows):
        places = rng.permutation(length)[: 2 * count]
        copies = np.ones(length, np.int64)
        copies[places[:count]] = 0
        copies[places[count:]] = 2
        shifted[row] = np.repeat(tokens[row], copies)
    return shifted
