"""Intervals by resampling trunks, and within each the seeds (Davison & Hinkley 1997, section 3.8: of clusters, in two stages).

Runs of one trunk are alike, so a draw takes whole trunks with replacement, then seeds of each with
replacement. Each trunk weighs alike, however many of its seeds are there. A draw is a weighting of
the runs: what is compared on the same runs is weighed by the same draws, and a difference is taken
run by run before it is resampled, so that pairs stay pairs. Resampling at both stages counts the
noise of seeds a little twice: intervals are slightly too wide where trunks are all alike, and, as
any percentile interval of a mean, too narrow where there are only a few trunks that differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 4000
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number with its 95 % interval; NaN where there is none.

    Attributes:
        value: of the runs that there are.
        low: of the interval; NaN where a single run says nothing of the next.
        high: of the interval.
        pairs: runs (trunk and seed) that it is of.
        trunks: of how many trunks they are.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    pairs: int = 0
    trunks: int = 0

    def to_json(self) -> dict[str, Any]:
        """All of it; NaN where there is no number, which files write as null."""
        return asdict(self)


def figure(
    values: ArrayLike, trunks: Sequence[str], of: Callable[[Floats], Floats] | None = None
) -> Figure:
    """A number made of means over runs, with its interval.

    Args:
        values: [n] or [n, k], of each run; runs with a number that is not finite are left out.
        trunks: [n] names.
        of: what is made of the means: [R, k] → [R]; the mean itself if left out. NaN where it has
            no value.
    """
    if not len(trunks):
        return Figure()
    table = np.asarray(values, dtype=np.float64).reshape(len(trunks), -1)  # (n, k)
    known = np.isfinite(table @ np.ones(table.shape[1]))
    names = [name for name, there in zip(trunks, known) if there]
    if not names:
        return Figure()
    order = sorted(range(len(names)), key=lambda place: names[place])
    table = table[known][order]
    counts = tuple(names.count(name) for name in sorted(set(names)))
    made = of or (lambda means: means[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(made(_even(counts)[None] @ table)[0])
        drawn = made(weights(counts) @ table)
    drawn = drawn[~np.isnan(drawn)]
    if len(names) == 1 or not len(drawn):
        return Figure(value=value, pairs=len(names), trunks=len(counts))
    low, high = np.quantile(
        drawn, INTERVAL, method="nearest"
    )  # between infinities nothing can be interpolated
    return Figure(
        value=value, low=float(low), high=float(high), pairs=len(names), trunks=len(counts)
    )


@lru_cache(maxsize=32)
def weights(counts: tuple[int, ...], resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """What each run weighs in each draw, [R, n]; every row sums to 1. Read-only.

    Args:
        counts: runs of each trunk, which lie one trunk after the other.
        resamples: R.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    many = len(counts)
    runs = np.array(counts)
    trunk = rng.integers(many, size=(resamples, many))  # (R, T)
    drawn = np.floor(rng.random((resamples, many, max(counts))) * runs[trunk][..., None]).astype(
        np.int64
    )  # (R, T, S)
    place = (np.cumsum(runs) - runs)[trunk][..., None] + drawn
    # as many draws of a trunk as it has seeds
    taken = np.arange(max(counts)) < runs[trunk][..., None]
    share = np.where(taken, 1 / (many * runs[trunk][..., None]), 0.0)
    row = np.arange(resamples)[:, None, None] * runs.sum()
    sums: Floats = np.bincount(
        (row + place).ravel(), share.ravel(), resamples * int(runs.sum())
    ).astype(np.float64)
    weighed = sums.reshape(resamples, -1)
    weighed.flags.writeable = False
    return weighed


def _even(counts: tuple[int, ...]) -> Floats:
    """Each trunk alike, and its runs alike."""
    return np.repeat(1 / (len(counts) * np.array(counts, dtype=np.float64)), counts)
