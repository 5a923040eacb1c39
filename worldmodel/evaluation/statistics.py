"""Statistics as functions of the trunks' weights, and their bootstrap over trunks.

The rows of a trunk share its future, so the bootstrap samples trunks with replacement (Efron 1979;
for whole clusters: Davison & Hinkley 1997, section 3.8). A sample gives each trunk a whole-number
weight. So a statistic is a function of these weights, and the rows are read once. The same samples
for two models give paired differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainenv.types import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

INTERVAL = (0.025, 0.975)  # levels of the bounds of a 95 % interval


class Statistic(Protocol):
    """A number computed from rows that belong to T trunks.

    Attributes:
        units: Number of rows, or of snapshots, that it is computed from.
        trunks: [T] True where a trunk has such rows.
    """

    @property
    def units(self) -> int: ...
    @property
    def trunks(self) -> NDArray[np.bool_]: ...

    def of(self, weights: Floats) -> Floats:
        """Return its value [R] for R weightings of the trunks [R, T]; NaN without any weight."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratio:
    """A ratio Σ above ÷ Σ below: a mean if `below` counts values, else a share.

    Attributes:
        above: [T] numerator of each trunk.
        below: [T] denominator of each trunk.
        units: Number of values.
        trunks: [T] True where a trunk has values.
    """

    above: Floats
    below: Floats
    units: int
    trunks: NDArray[np.bool_]

    def of(self, weights: Floats) -> Floats:
        """See `Statistic`."""
        with np.errstate(invalid="ignore"):  # widths may be infinite: 0 × ∞ is NaN and is left out
            return _divided(weights @ self.above, weights @ self.below)


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePrecision:
    """The area under the curve of precision over recall: Σ (R_k − R_{k−1})·P_k.

    k counts the distinct scores, from the highest down. Equal scores are one step, so a constant
    score gives the base rate.

    Args:
        scores: [n] scores, higher for rows that are more likely true.
        labels: [n] truth of the rows.
        trunk: [n] trunks of the rows, from 0 to count − 1.
        count: Number of trunks T.
    """

    scores: Floats
    labels: NDArray[np.bool_]
    trunk: Ints
    count: int

    @property
    def units(self) -> int:
        return len(self.scores)

    @property
    def trunks(self) -> NDArray[np.bool_]:
        return np.bincount(self.trunk, minlength=self.count) > 0

    def of(self, weights: Floats) -> Floats:
        """See `Statistic`; NaN if no row with weight is true."""
        order = np.argsort(-self.scores, kind="stable")
        descending = self.scores[order]
        ends = np.flatnonzero(np.diff(descending, append=-math.inf))  # last row of each score
        trunk = self.trunk[order]
        labels = self.labels[order]
        found = np.full(len(weights), math.nan)
        for place, weight in enumerate(weights):
            mass = weight[trunk]  # [n]
            taken = np.cumsum(mass)[ends]
            hits = np.cumsum(mass * labels)[ends]
            if len(ends) and hits[-1] > 0:
                precision = np.nan_to_num(_divided(hits, taken))
                found[place] = np.diff(hits, prepend=0.0) @ precision / hits[-1]
        return found


def mean(values: ArrayLike, trunk: ArrayLike, count: int) -> Ratio:
    """Return the mean of `values` [u], which belong to the trunks `trunk` [u] out of `count`.

    NaN is left out; all other values have the same weight.
    """
    return share(values, np.ones(np.shape(values)), trunk, count)


def share(above: ArrayLike, below: ArrayLike, trunk: ArrayLike, count: int) -> Ratio:
    """Return Σ above ÷ Σ below over units [u]; a unit that is NaN in either is left out."""
    numerator = np.asarray(above, dtype=np.float64)
    denominator = np.asarray(below, dtype=np.float64)
    known = ~(np.isnan(numerator) | np.isnan(denominator))
    codes = np.asarray(trunk, dtype=np.int64)[known]
    return Ratio(
        above=np.bincount(codes, numerator[known], count).astype(np.float64),
        below=np.bincount(codes, denominator[known], count).astype(np.float64),
        units=int(known.sum()),
        trunks=np.bincount(codes, minlength=count) > 0,
    )


def value(statistic: Statistic) -> float:
    """Return the value of a statistic over all trunks, each with the weight 1."""
    return float(statistic.of(np.ones((1, len(statistic.trunks))))[0])


def resampled(present: NDArray[np.bool_], resamples: int, seed: int) -> Floats:
    """Return bootstrap weights of the trunks, [resamples, T].

    Args:
        present: [T] True for trunks to sample from; each sample has as many trunks as there are.
        resamples: Number of bootstrap samples.
        seed: Random seed.

    Raises:
        UserError: no trunk is present, or resamples is below 1.
    """
    if not present.any():
        raise UserError(
            "an evaluation needs branches of at least one trunk, found none; "
            "keep some trunks to test on"
        )
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise UserError(
            f"resamples must be a whole number, at least 1, found {resamples!r}; 1000 is usual"
        )
    chances = present / present.sum()
    rng = np.random.default_rng(seed)
    return rng.multinomial(int(present.sum()), chances, size=resamples).astype(np.float64)


def bounds(values: Floats) -> tuple[float, float]:
    """Return the 95 % interval of resampled values [R], without those that are NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    # Not interpolated, because values may be infinite.
    low, high = np.quantile(known, INTERVAL, method="nearest")
    return float(low), float(high)


def _divided(above: Floats, below: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below != 0, above / below, math.nan)
