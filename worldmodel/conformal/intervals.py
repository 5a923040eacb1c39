"""Conformal intervals around a world model's forecasts, valid for a new trunk.

A *row* is one forecast with its outcome, for instance Δ ln loss at the horizon; its *trunk* is the
run that its snapshot was taken from. Rows of one trunk share their future, so the trunks are
exchangeable, and the rows are not.

The scores are those of conformalized quantile regression (CQR: Romano, Patterson & Candès 2019,
arXiv:1905.03222; `scaled`: CQR-r of Sesia & Candès 2020). Their quantiles are taken by trunk
(`quantile`).

    symmetric      s = max(q_lo − y, y − q_hi); both bounds move outwards by the
                   (1 − α)-quantile of s
    separate       s_lo = q_lo − y and s_hi = y − q_hi; each bound moves by the
                   (1 − α/2)-quantile of its own scores
    lower, upper   only one bound is used; it moves by the (1 − α)-quantile of its own scores
    scaled         scores are divided by q_hi − q_lo, and the widening is multiplied by it

Guarantees, if the forecaster has seen none of these trunks, and they and the new one are
exchangeable:

- P(y in its interval) ≥ 1 − α for a random row of a *new trunk*, over the choice of calibration
  trunks and new trunk. It does not hold within each run, where coverage may have any value
  (`adaptive` follows it), nor for picked rows (see `selection`).
- The same holds within a stratum that has `least_trunks` trunks (Mondrian), over new trunks with
  rows there. A stratum with fewer trunks uses its parent's widening, and then only the guarantee
  over the parent's rows. The choice depends on numbers of trunks, never on scores.

Deviations: forecast bounds that cross are swapped; bounds that would cross after shrinking meet in
their middle, which covers one point more than the empty set; `support` limits intervals to possible
outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainenv.types import UserError
from trainenv.worldmodel.conformal.quantile import (
    Array,
    aligned,
    checked_weights,
    conformal_quantile,
    ordered,
    plain,
    share,
    trunk_codes,
)

Sides = Literal["symmetric", "separate", "lower", "upper"]


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Widening of an interval.

    Attributes:
        low: Distance that the lower bound moves down, in units of the forecast, or in widths if
            scaled; negative for up.
        high: Distance that the upper bound moves up, likewise.
        stratum: Stratum whose rows were used.
        trunks: Number of trunks in this stratum.
    """

    low: float
    high: float
    stratum: str
    trunks: int


@dataclass(frozen=True, kw_only=True)
class CQR:
    """Conformalized quantile regression; `selection.fit_selected` applies it to picked rows.

    Args:
        alpha: Share of outcomes that may fall outside, above 0 and below 1.
        sides: Kind of score, see the module. "separate" suits picks, whose errors have a bias, but
            needs twice the number of trunks.
        scaled: True to widen in proportion to the width of the forecast.
        least_trunks: Number of trunks below which a stratum uses its parent; None for the fewest
            that give a finite widening, 9 at α = 0.1.
        support: Least and greatest possible outcome; this is the interval where too few trunks give
            no finite one.

    Raises:
        UserError: a hyperparameter is out of range.
    """

    alpha: float = 0.1
    sides: Sides = "symmetric"
    scaled: bool = False
    least_trunks: int | None = None
    support: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        share("alpha", self.alpha)
        if self.sides not in get_args(Sides):
            raise UserError(
                f"sides must be one of {', '.join(get_args(Sides))}, found {self.sides!r}"
            )
        if self.least_trunks is not None and self.least_trunks < 1:
            raise UserError(
                f"least_trunks must be 1 or more, found {self.least_trunks!r}; "
                "None takes the fewest that suffice"
            )
        if not self.support[0] < self.support[1]:
            raise UserError(f"support must be (least, greatest), found {self.support!r}")

    def fit(
        self,
        lower: ArrayLike,
        upper: ArrayLike,
        outcome: ArrayLike,
        *,
        trunks: ArrayLike,
        strata: Sequence[str] | None = None,
        weights: ArrayLike | None = None,
    ) -> Calibration:
        """Calibrate on rows, for a row at random.

        Args:
            lower: [n] forecasts of the lower quantile, finite.
            upper: [n] forecasts of the upper quantile, finite.
            outcome: [n] outcomes in the same units; inf for a branch that diverged.
            trunks: [n] names or numbers of the rows' trunks.
            strata: [n] paths such as "early/lr", whose parents are "early" and ""; None puts all
                rows in "".
            weights: [n] weights, at least 0, relative to the new row, which has 1: likelihood
                ratios (Tibshirani 2019), or less for old trunks (Barber 2023 bounds the loss of
                coverage under drift). None for 1.

        Raises:
            UserError: rows are missing, not aligned, NaN, or outside the support.
        """
        lows, highs, outcomes = aligned(lower=lower, upper=upper, outcome=outcome)
        count = len(outcomes)
        low, high = self.scores(lows, highs, outcomes)
        mass = np.ones(count)
        if weights is not None:
            mass = checked_weights(weights, count)
        return Calibration(
            how=self,
            low=low,
            high=high,
            trunks=trunk_codes(trunks, count),
            strata=_paths(strata, count),
            weights=mass,
        )

    def scores(self, lower: Array, upper: Array, outcome: Array) -> tuple[Array, Array]:
        """Return the distances of outcomes beyond each bound, [n] each; negative inside."""
        lower, upper = ordered(lower, upper)
        if outcome.min() < self.support[0] or outcome.max() > self.support[1]:
            raise UserError(
                f"outcomes must lie in the support {self.support}, "
                f"found {outcome.min():g} to {outcome.max():g}; widen the support"
            )
        unit: Array | float = 1.0
        if self.scaled:
            unit = upper - lower
            if unit.min() <= 0:
                raise UserError(
                    "scaled scores need forecasts with a width above 0, found a width of 0; "
                    "use scaled=False"
                )
        return (lower - outcome) / unit, (outcome - upper) / unit

    @property
    def _fewest(self) -> int:
        if self.least_trunks is not None:
            return self.least_trunks
        return max(1, math.ceil(1 / self._alpha_each(self.alpha) - 1e-9) - 1)

    def _alpha_each(self, alpha: float) -> float:
        """Return the share of outcomes that may fall beyond a bound's own quantile."""
        if self.sides == "separate":
            return alpha / 2
        return alpha


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Scores of past rows, from which intervals are made.

    `state` holds it as JSON values; `Calibration.from_state` restores it.

    Attributes:
        how: Kind of the scores and target coverage.
        low, high: [n] scores of the two bounds.
        trunks: [n] numbers of the rows' trunks.
        strata: [n] paths of the rows' strata.
        weights: [n] weights of the rows.
    """

    how: CQR
    low: Array = field(repr=False)
    high: Array = field(repr=False)
    trunks: NDArray[np.intp] = field(repr=False)
    strata: tuple[str, ...] = field(repr=False)
    weights: Array = field(repr=False)

    def correction(self, stratum: str = "", *, alpha: float | None = None) -> Correction:
        """Return the widening in a stratum, or in its nearest parent with enough trunks."""
        if alpha is None:
            alpha = self.how.alpha
        else:
            share("alpha", alpha, least=0.0)
        rows, count = self._rows(stratum)
        while stratum and count < self.how._fewest:
            stratum = stratum.rpartition("/")[0]
            rows, count = self._rows(stratum)

        def quantile(scores: Array, level: float) -> float:
            return conformal_quantile(
                scores[rows], alpha=level, trunks=self.trunks[rows], weights=self.weights[rows]
            )

        low = high = math.inf
        if self.how.sides == "symmetric":
            low = high = quantile(np.maximum(self.low, self.high), alpha)
        if self.how.sides in ("separate", "lower"):
            low = quantile(self.low, self.how._alpha_each(alpha))
        if self.how.sides in ("separate", "upper"):
            high = quantile(self.high, self.how._alpha_each(alpha))
        return Correction(low=low, high=high, stratum=stratum, trunks=count)

    def interval(
        self,
        lower: ArrayLike,
        upper: ArrayLike,
        *,
        strata: Sequence[str] | None = None,
        alpha: float | None = None,
    ) -> tuple[Array, Array]:
        """Return calibrated bounds, [n] each, in the units of the forecasts.

        Too few trunks give infinite bounds, or those of the support.

        Args:
            lower: [n] forecasts of the lower quantile, finite.
            upper: [n] forecasts of the upper quantile, finite.
            strata: [n] paths of strata; an unknown stratum uses its parents. None for "".
            alpha: Share of outcomes that may fall outside, in place of the calibration's own; 0
                gives the whole support.
        """
        lows, highs = ordered(*aligned(lower=lower, upper=upper))
        paths = _paths(strata, len(lows))
        each = {path: self.correction(path, alpha=alpha) for path in set(paths)}
        unit = np.ones(len(lows))
        if self.how.scaled:
            # An infinite widening of a width of 0 must be infinite, and not NaN.
            unit = np.maximum(highs - lows, np.finfo(np.float64).tiny)
        lows = lows - np.array([each[path].low for path in paths]) * unit
        highs = highs + np.array([each[path].high for path in paths]) * unit
        crossed = lows > highs
        lows[crossed] = highs[crossed] = (lows[crossed] + highs[crossed]) / 2
        return np.clip(lows, *self.how.support), np.clip(highs, *self.how.support)

    @property
    def state(self) -> dict[str, Any]:
        """The calibration as JSON values; infinite numbers are the strings "inf" and "-inf"."""
        return {
            "how": {**asdict(self.how), "support": plain(self.how.support)},
            "strata": list(self.strata),
            "trunks": self.trunks.tolist(),
            **{name: plain(getattr(self, name)) for name in ("low", "high", "weights")},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Calibration:
        """Return the calibration with this `state`."""
        low, high = (float(bound) for bound in state["how"]["support"])
        return cls(
            how=CQR(**{**state["how"], "support": (low, high)}),
            strata=tuple(state["strata"]),
            trunks=np.array(state["trunks"], dtype=np.intp),
            **{
                name: np.array([float(x) for x in state[name]])
                for name in ("low", "high", "weights")
            },
        )

    def _rows(self, stratum: str) -> tuple[NDArray[np.bool_], int]:
        """Return the rows in a stratum or below it, [n], and the number of their trunks."""
        inside = [
            not stratum or path == stratum or path.startswith(stratum + "/") for path in self.strata
        ]
        rows = np.array(inside) & (self.weights > 0)
        return rows, len(np.unique(self.trunks[rows]))


def _paths(strata: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return the path of each row's stratum; without strata all are ""."""
    if strata is None:
        return ("",) * count
    if len(strata) != count:
        raise UserError(
            f"strata must have one path for each row, {count} in all, found {len(strata)}"
        )
    return tuple(strata)
