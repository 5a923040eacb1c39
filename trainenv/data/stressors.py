"""What provokes instability, on purpose and on record: batch → batch, pure functions of (tokens, index, seed).

Whether a stressor hits an index is a uniform number of its own stream below its rate: stressors are
independent of each other, and a higher rate hits what the lower one hit and more. Planted events
hit with certainty.

| stressor | what it does to a batch | `Plant.size` (1 by default) | when drawn |
|---|---|---|---|
| `rare_tokens` | runs of 16 tokens replaced by rare ones | share of positions, at most 1 | 0.5 |
| `long_sequence` | the same number of tokens in fewer, `long_factor` times longer sequences | no meaning | |
| `artefacts` | runs of 8 tokens replaced by mojibake; tokens dropped and others doubled | share of positions, at most 1 | 0.25 |
| `block_shuffle` | blocks of 16 tokens shuffled within each sequence | share of blocks, at most 1 | 1 |
| `random_tokens` | runs of 16 tokens replaced by uniformly drawn ones | share of positions, at most 1 | never |
| `lr_spike` | nothing: the learning rate of the steps is multiplied | the factor | never |
| `lost_moments` | nothing: the optimizer's moments are gone before the steps, as after a bad restart | no meaning | never |

The rate of `block_shuffle` is the share of each epoch that one contiguous stretch of it covers.
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

# In the order in which they change a batch.
TOKEN_KINDS: tuple[PlantKind, ...] = ("block_shuffle", "artefacts", "rare_tokens", "random_tokens")
DRAWN_SIZE: dict[PlantKind, float] = {"block_shuffle": 1.0, "artefacts": 0.25, "rare_tokens": 0.5}
RUN = {"artefacts": 8, "rare_tokens": 16, "random_tokens": 16}  # tokens
BLOCK = 16  # tokens that stay together when blocks are shuffled
_DRAWN_TOGETHER = 1024  # indices


def philox(seed: int, purpose: str, place: int) -> np.random.Generator:
    """A generator of its own for each (seed, purpose, place): Philox, a function of key and counter (Salmon et al. 2011)."""
    key = np.array([seed, xxhash.xxh3_64_intdigest(purpose.encode())], np.uint64)
    # The place is the counter's third word: drawing counts up the first, so that no two places
    # meet.
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, place, 0]))


@dataclass(frozen=True, eq=False)
class Stressors:
    """The stressors of a run.

    Args:
        config: their rates, sizes and planted events.
        rare: tokens that bursts are made of [n].
        artefacts: tokens of a text gone wrong, in order [n].
        vocab_size: tokens to draw random ones from.
        seed: of every draw.
        epoch_steps: data indices in an epoch, for the stretch of `block_shuffle`.
    """

    config: StressorConfig
    rare: npt.NDArray[np.integer[Any]] = field(repr=False)
    artefacts: npt.NDArray[np.integer[Any]] = field(repr=False)
    vocab_size: int
    seed: int
    epoch_steps: int

    def __call__(self, tokens: Tokens, index: int) -> tuple[Tokens, tuple[str, ...]]:
        """The batch of data index `index` as stressed, and the names of what was done to it.

        Args:
            tokens: [B, T + 1] int64; left as it is.
            index: data index, at least 0.
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
        """Whether the batch of `index` is to be cut into fewer, longer sequences; asked before it is cut."""
        return self.size("long_sequence", index) > 0

    def lr_factor(self, step: int) -> float:
        """Factor on the learning rate of the step after `step` completed ones: the harsh warm-up and planted spikes."""
        factor = self.config.harsh_warmup_lr if step < self.config.harsh_warmup_steps else 1.0
        spikes = (
            plant.size
            for plant in self.config.planted
            if plant.kind == "lr_spike" and 0 <= step - plant.at < plant.steps
        )
        return math.prod(spikes, start=factor)

    def moments_lost(self, step: int) -> bool:
        """Whether the optimizer's moments are gone before the step after `step` completed ones."""
        return self.size("lost_moments", step) > 0

    def size(self, kind: PlantKind, index: int) -> float:
        """How strongly `kind` hits the batch of `index`; 0 where it does not.

        The strongest planted event goes before a draw.
        """
        planted = [
            plant.size
            for plant in self.config.planted
            if plant.kind == kind and 0 <= index - plant.at < plant.steps
        ]
        if planted:
            return max(planted)
        return DRAWN_SIZE.get(kind, 1.0) if self._drawn(kind, index) else 0.0

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
        # Stretches of growing length lie in each other, since their common position is relative to
        # the room left over.
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
        # A random place in the text gone wrong for each sequence; runs show stretches of it.
        places = (
            rng.integers(len(self.artefacts), size=(len(tokens), 1)) + np.arange(tokens.shape[1])
        ) % len(self.artefacts)
        return _shift(np.where(mask, self.artefacts[places], tokens).astype(np.int64), share, rng)


@lru_cache(maxsize=256)
def _uniforms(seed: int, kind: str, block: int) -> list[float]:
    """The uniform numbers of `_DRAWN_TOGETHER` indices (`block_shuffle`: epochs), drawn together since a draw costs 15 µs."""
    drawn: list[float] = (
        philox(seed, f"stressors/{kind}/whether", block).random(_DRAWN_TOGETHER).tolist()
    )
    return drawn


def _runs(shape: tuple[int, ...], share: float, run: int, rng: np.random.Generator) -> Mask:
    """A mask [B, L] of about `share` of the positions, at least one run in each row, in runs of `run` with a random start."""
    rows, length = shape
    count = -(-length // run)
    ranks = rng.random((rows, count)).argsort(axis=1)
    mask = np.repeat(ranks < max(1, round(share * count)), run, axis=1)  # (B, count · run)
    offset = int(rng.integers(run))
    return np.roll(mask, offset, axis=1)[:, :length]


def _shuffle_blocks(tokens: Tokens, share: float, rng: np.random.Generator) -> Tokens:
    """Each row's blocks, or a random `share` of them (at least two), in a random order; what is left at the end stays."""
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
    """Tokens dropped, and as many others doubled, up to 1 in 8 of each: what lies between is segmented anew."""
    rows, length = tokens.shape
    count = max(1, round(share * length / 8))
    shifted = np.empty_like(tokens)
    for row in range(rows):
        places = rng.permutation(length)[: 2 * count]
        copies = np.ones(length, np.int64)
        copies[places[:count]], copies[places[count:]] = 0, 2
        shifted[row] = np.repeat(tokens[row], copies)
    return shifted
