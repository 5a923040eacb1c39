"""Bootstrap intervals: scenarios are resampled, then the seeds of each.

This is the two-stage bootstrap of clusters (Davison & Hinkley 1997, section 3.8). Runs of one
scenario are similar, so each draw takes whole scenarios with replacement, then seeds of each with
replacement. All scenarios have the same weight, however many of their seeds are there. A draw
gives each run a weight. Two methods are compared with the same draws, and their difference is taken
run by run before resampling, so that pairs stay pairs.

Resampling at both stages counts the noise of seeds slightly twice. Intervals are therefore a little
too wide where all scenarios are similar. Like any percentile interval of a mean, they are too
narrow where only a few scenarios differ.
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
        value: Value over the runs that exist.
        low: Lower end of the interval; NaN for a single run.
        high: Upper end of the interval; NaN for a single run.
        pairs: Number of runs (scenario and seed).
        scenarios: Number of scenarios of these runs.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    pairs: int = 0
    scenarios: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return all fields; files write NaN as null."""
        return asdict(self)


def figure(
    values: ArrayLike, scenarios: Sequence[str], of: Callable[[Floats], Floats] | None = None
) -> Figure:
    """Return a number computed from means over runs, with its interval.

    Args:
        values: [n] or [n, k] numbers, one row a run; runs with a non-finite number are left out.
        scenarios: [n] names of the scenarios.
        of: Function of the means, [R, k] → [R], NaN where it has no value; the first mean by
            default.
    """
    if not len(scenarios):
        return Figure()
    table = np.asarray(values, dtype=np.float64).reshape(len(scenarios), -1)  # (n, k)
    finite = np.isfinite(table @ np.ones(table.shape[1]))
    names = [name for name, there in zip(scenarios, finite) if there]
    if not names:
        return Figure()
    order = sorted(range(len(names)), key=lambda place: names[place])
    table = table[finite][order]
    counts = tuple(names.count(name) for name in sorted(set(names)))
    compute = of or (lambda means: means[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(compute(_even(counts)[None] @ table)[0])
        drawn = compute(weights(counts) @ table)
    drawn = drawn[~np.isnan(drawn)]
    if len(names) == 1 or not len(drawn):
        return Figure(value=value, pairs=len(names), scenarios=len(counts))
    # "nearest", because nothing can be interpolated between infinities.
    low, high = np.quantile(drawn, INTERVAL, method="nearest")
    return Figure(
        value=value, low=float(low), high=float(high), pairs=len(names), scenarios=len(counts)
    )


@lru_cache(maxsize=32)
def weights(counts: tuple[int, ...], resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the weight of each run in each draw, [R, n], read-only; each row sums to 1.

    Args:
        counts: Number of runs of each scenario; the runs of a scenario are adjacent.
        resamples: Number of draws, R.
        seed: Random seed of the draws.
    """
    rng = np.random.default_rng(seed)
    many = len(counts)
    runs = np.array(counts)
    scenario = rng.integers(many, size=(resamples, many))  # (R, T)
    seeds = runs[scenario][..., None]  # (R, T, 1)
    uniform = rng.random((resamples, many, max(counts)))
    drawn = np.floor(uniform * seeds).astype(np.int64)  # (R, T, S)
    place = (np.cumsum(runs) - runs)[scenario][..., None] + drawn
    # A scenario is drawn with as many runs as it has seeds.
    taken = np.arange(max(counts)) < seeds
    share = np.where(taken, 1 / (many * seeds), 0.0)
    total = int(runs.sum())
    row = np.arange(resamples)[:, None, None] * total
    sums = np.bincount((row + place).ravel(), share.ravel(), resamples * total)
    drawn_weights: Floats = sums.astype(np.float64).reshape(resamples, -1)
    drawn_weights.flags.writeable = False
    return drawn_weights


def _even(counts: tuple[int, ...]) -> Floats:
    """Return equal weights for all scenarios, and for the runs of each."""
    return np.repeat(1 / (len(counts) * np.array(counts, dtype=np.float64)), counts)
