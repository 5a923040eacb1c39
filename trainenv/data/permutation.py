"""Shuffling without a list: a keyed bijection of 0 … n − 1.

A Feistel network (Luby & Rackoff 1988) permutes all numbers of b bits, 2^b ≥ n. L is the upper half
of the bits, R the lower half:

    L ← L xor F(R, k_r)   in even rounds r,      R ← R xor F(L, k_r)   in odd ones

A number that falls outside 0 … n − 1 is put through the network again until it falls inside (cycle
walking, Black & Rogaway 2002), at most twice on average. F is the finaliser of SplitMix64
(Steele 2014). The place of a row is computed when it is asked for, so nothing grows with n.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import xxhash

from trainenv.tools.checks import whole

Indices = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LARGEST = 2**62  # rows


@dataclass(frozen=True)
class Permutation:
    """Permutation of 0 … size − 1, computed place by place.

    Args:
        size: Number of rows, at least 1.
        key: Whole number that selects the permutation, at least 0.

    Raises:
        UserError: An argument is out of range.
    """

    size: int
    key: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", whole("size", self.size, least=1))
        object.__setattr__(self, "key", whole("key", self.key, least=0))
        assert self.size <= _LARGEST

    def __call__(self, places: npt.ArrayLike) -> Indices:
        """Return the rows at `places`, int64 of their shape; each place is below `size`."""
        found = np.atleast_1d(np.asarray(places, dtype=np.int64)).astype(np.uint64)
        bits = max(2, (self.size - 1).bit_length())
        keys = _round_keys(self.key)
        found = _network(found, bits, keys)
        while (outside := found >= np.uint64(self.size)).any():
            found[outside] = _network(found[outside], bits, keys)
        return found.astype(np.int64).reshape(np.shape(places))


@dataclass(frozen=True, kw_only=True)
class ShuffledRows:
    """Rows of a data set by position, counted over epochs without end.

    In each epoch every row occurs at most once. The rows that do not fill a last batch are left
    out, different ones in each epoch.

    Args:
        rows: Number of rows.
        batch_size: Number of rows of a batch, at most `rows`.
        seed: Random seed of the order.
        shuffle: False to keep the order of the data set in every epoch.
    """

    rows: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True

    @property
    def epoch_steps(self) -> int:
        """Number of batches in an epoch."""
        return self.rows // self.batch_size

    def __call__(self, index: int) -> Indices:
        """Return the rows of the batch with data index `index`, int64 [batch_size]."""
        epoch, place = divmod(int(index), self.epoch_steps)
        first = place * self.batch_size
        places = np.arange(first, first + self.batch_size, dtype=np.int64)
        if not self.shuffle:
            return places
        key = digest(f"data/rows/{self.seed}/{epoch}")
        return Permutation(self.rows, key)(places)


def digest(words: str) -> int:
    """Return a hash of words, 64 bits."""
    return xxhash.xxh3_64_intdigest(words.encode())


@lru_cache(maxsize=64)
def _round_keys(key: int) -> tuple[np.uint64, ...]:
    """Return the key of each round."""
    return tuple(np.uint64(digest(f"{key}/{place}")) for place in range(_ROUNDS))


def _network(words: _Words, bits: int, keys: tuple[np.uint64, ...]) -> _Words:
    """Return the numbers of `bits` bits after all rounds."""
    low = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    left = words >> low
    right = words & low_mask
    for place, key in enumerate(keys):
        if place % 2:
            right = right ^ (_mixed(left, key) & low_mask)
        else:
            left = left ^ (_mixed(right, key) & high_mask)
    return (left << low) | right


def _mixed(words: _Words, key: np.uint64) -> _Words:
    """Return a hash of each word, uint64; the arithmetic wraps around."""
    mixed = (words + np.uint64(1)) * _GOLDEN + key
    for shift, factor in _MIX:
        mixed = (mixed ^ (mixed >> shift)) * factor
    return mixed ^ (mixed >> np.uint64(31))
