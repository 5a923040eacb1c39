"""A statistic is a function of how much each trunk weighs, so that resampling trunks costs no second look at the rows.

Bootstrap over trunks (Efron 1979; of whole clusters: Davison & Hinkley 1997, section 3.8): the rows
of a trunk share its future, so trunks are what is drawn, with replacement. A draw gives each trunk
a whole-number weight. Two models that are weighed by the same draws give paired differences.
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

INTERVAL = (0.025, 0.975)


class Statistic(Protocol):
    """A number made from rows that belong to trunks.

    Attributes:
        units: rows, snapshots or whatever else it is made from.
        trunks: [T] whether a trunk has any of them.
    """

    @property
    def units(self) -> int: ...
    @property
    def trunks(self) -> NDArray[np.bool_]: ...

    def of(self, weights: Floats) -> Floats:
        """Its value for each weighting of the trunks: [R, T] → [R]; NaN where nothing weighs anything."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratio:
    """Σ above ÷ Σ below, both by trunk, [T]: a mean, where `below` counts; a share of something, where it does not."""

    above: Floats
    below: Floats
    units: int
    trunks: NDArray[np.bool_]

    def of(self, weights: Floats) -> Floats:
        """See `Statistic`."""
        with np.errstate(invalid="ignore"):  # a width may be infinite: 0 × ∞ is NaN, and left out
            return _divided(weights @ self.above, weights @ self.below)


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePrecision:
    """The area under the curve of precision over recall, as the sum of its steps: Σ (R_k − R_{k−1})·P_k.

    k counts the distinct scores, from the highest down: equal scores are one step, and a constant
    score gives the base rate.

    Args:
        scores: [n], higher for what is likelier true.
        labels: [n] what is true.
        trunk: [n] from 0 to count − 1.
        count: T.
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
        """See `Statistic`; NaN where nothing that weighs is true."""
        order = np.argsort(-self.scores, kind="stable")
        ends = np.flatnonzero(
            np.diff(self.scores[order], append=-math.inf)
        )  # the last row of each distinct score
        trunk = self.trunk[order]
        labels = self.labels[order]
        found = np.full(len(weights), math.nan)
        for place, weight in enumerate(weights):
            mass = weight[trunk]  # [n]
            taken = np.cumsum(mass)[ends]
            hits = np.cumsum(mass * labels)[ends]
            if len(ends) and hits[-1] > 0:
                found[place] = (
                    np.diff(hits, prepend=0.0) @ np.nan_to_num(_divided(hits, taken)) / hits[-1]
                )
        return found


def mean(values: ArrayLike, trunk: ArrayLike, count: int) -> Ratio:
    """The mean of `values` [u], of the trunks `trunk` [u] out of `count`; each value weighs alike, NaN is left out."""
    return share(values, np.ones(np.shape(values)), trunk, count)


def share(above: ArrayLike, below: ArrayLike, trunk: ArrayLike, count: int) -> Ratio:
    """Σ above ÷ Σ below over units [u]; one that is NaN in either is left out."""
    over = np.asarray(above, dtype=np.float64)
    under = np.asarray(below, dtype=np.float64)
    of = np.asarray(trunk, dtype=np.int64)
    known = ~(np.isnan(over) | np.isnan(under))
    sums = [
        np.bincount(of[known], values[known], count).astype(np.float64) for values in (over, under)
    ]
    return Ratio(
        above=sums[0],
        below=sums[1],
        units=int(known.sum()),
        trunks=np.bincount(of[known], minlength=count) > 0,
    )


def value(statistic: Statistic) -> float:
    """Of all trunks, each weighing 1."""
    return float(statistic.of(np.ones((1, len(statistic.trunks))))[0])


def resampled(present: NDArray[np.bool_], resamples: int, seed: int) -> Floats:
    """How often each trunk is drawn, [resamples, T], when as many are drawn as there are `present` [T], of these.

    Raises:
        UserError: there is no trunk, or fewer than 1 resample is asked for.
    """
    if not present.any():
        raise UserError(
            "an evaluation needs branches of at least one trunk, found none; keep some trunks to test on"
        )
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise UserError(
            f"resamples must be a whole number, at least 1, found {resamples!r}; 1000 is usual"
        )
    chances = present / present.sum()
    return (
        np.random.default_rng(seed)
        .multinomial(int(present.sum()), chances, size=resamples)
        .astype(np.float64)
    )


def bounds(values: Floats) -> tuple[float, float]:
    """The 95 % interval of resampled values [R]; those that could not be computed are left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(
        known, INTERVAL, method="nearest"
    )  # between infinities nothing can be interpolated
    return float(low), float(high)


def _divided(above: Floats, below: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below != 0, above / below, math.nan)
