"""Conformal intervals round a world model's forecasts, valid for a new trunk.

A *row* is one forecast with its outcome (Δ log loss at +N against doing nothing, say); a *trunk* is
the run that its snapshot was taken of. Rows of one trunk share their future, so what is
exchangeable is the trunks.

Scores (conformalized quantile regression, CQR: Romano, Patterson & Candès 2019, arXiv:1905.03222;
`scaled`:  CQR-r of Sesia & Candès 2020), with their quantiles taken by trunk (`quantile`):

    symmetric   s = max(q_lo − y, y − q_hi)                both bounds move outwards by the (1 −
    α)-quantile of s separate    s_lo = q_lo − y,  s_hi = y − q_hi          each bound by the (1 −
    α/2)-quantile of its own lower, upper                                           one bound, by
    the (1 − α)-quantile of its own scaled      the same scores divided by q_hi − q_lo, and the
    widening multiplied by it

What is guaranteed, if the forecaster saw none of these trunks and they and the new one are
exchangeable:
- P(y in the interval) ≥ 1 − α for a row drawn at random from a *new trunk*, over calibration and new trunk together. Not for
  each run: within one, coverage may be anything (`adaptive` follows it). Not for picked rows: see
      `selection`.
- In a stratum with `least_trunks` trunks: the same within the stratum (Mondrian), over new trunks that have rows there. One with
  fewer borrows its parent's widening, and with it a guarantee over the parent's rows alone.
  Back-off looks at numbers of trunks, never at scores.

Deviations: forecast bounds that cross are swapped; bounds that would cross after shrinking meet in
their middle (a point more than the empty set); `support` caps what is known to be possible.
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
    """How far the bounds move outwards (inwards where negative; in widths if scaled), and on whose evidence."""

    low: float
    high: float
    stratum: str
    trunks: int


@dataclass(frozen=True, kw_only=True)
class CQR:
    """How to calibrate intervals; `fit` does it for rows as they come, `selection.fit_selected` for picks.

    Args:
        alpha: share of outcomes that may fall outside, between 0 and 1.
        sides: see the module. `separate` suits picks, whose errors lean to one side, but needs
            twice the trunks.
        scaled: widen in proportion to the forecast's own width.
        least_trunks: with fewer a stratum asks its parent; None for as few as give a finite
            widening, 9 at α = 0.1.
        support: least and greatest possible outcome: the interval where there are too few trunks
            for a finite one.

    Raises:
        UserError: a setting is out of range.
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
                f"least_trunks must be 1 or more, found {self.least_trunks!r}; None takes the fewest that will do"
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
        """Calibrate on rows as they come.

        Args:
            lower: forecast of the lower quantile, [n], finite.
            upper: of the upper one.
            outcome: what happened, [n], in the same units; inf for a branch that diverged.
            trunks: which run each row belongs to, [n].
            strata: a path each, [n], such as "early/lr": its parents are "early" and "". None: all
                in "".
            weights: of each row, [n], ≥ 0, relative to the row to come, which has 1: likelihood
                ratios (Tibshirani 2019), or less for old trunks (Barber 2023, which bounds what
                coverage drift then costs). None: 1.

        Raises:
            UserError: rows are missing, not aligned, NaN, or outside the support.
        """
        lows, highs, outcomes = aligned(lower=lower, upper=upper, outcome=outcome)
        count = len(outcomes)
        low, high = self.scores(lows, highs, outcomes)
        paths = ("",) * count if strata is None else tuple(strata)
        if len(paths) != count:
            raise UserError(f"strata must have one path a row, {count} in all, found {len(paths)}")
        mass = np.ones(count) if weights is None else checked_weights(weights, count)
        return Calibration(
            how=self,
            low=low,
            high=high,
            trunks=trunk_codes(trunks, count),
            strata=paths,
            weights=mass,
        )

    def scores(self, lower: Array, upper: Array, outcome: Array) -> tuple[Array, Array]:
        """How far the outcome is beyond each bound, [n] each; negative inside."""
        lower, upper = ordered(lower, upper)
        if outcome.min() < self.support[0] or outcome.max() > self.support[1]:
            raise UserError(
                f"outcomes must lie in the support {self.support}, found {outcome.min():g} to {outcome.max():g}"
            )
        unit: Array | float = 1.0
        if self.scaled:
            unit = upper - lower
            if unit.min() <= 0:
                raise UserError(
                    "scaled scores need forecasts with a width above 0, found a width of 0; use scaled=False"
                )
        return (lower - outcome) / unit, (outcome - upper) / unit

    @property
    def _fewest(self) -> int:
        if self.least_trunks is not None:
            return self.least_trunks
        alpha = self.alpha / 2 if self.sides == "separate" else self.alpha
        return max(1, math.ceil(1 / alpha - 1e-9) - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Scores of past rows, from which intervals are made.

    Save it as `state`; `Calibration.from_state` reads that.
    """

    how: CQR
    low: Array = field(repr=False)
    high: Array = field(repr=False)
    trunks: NDArray[np.intp] = field(repr=False)
    strata: tuple[str, ...] = field(repr=False)
    weights: Array = field(repr=False)

    def correction(self, stratum: str = "", *, alpha: float | None = None) -> Correction:
        """The widening in force in `stratum` (or, with too few trunks there, in its nearest parent with enough)."""
        alpha = self.how.alpha if alpha is None else share("alpha", alpha, least=0.0)
        rows, count = self._rows(stratum)
        while stratum and count < self.how._fewest:
            stratum = stratum.rpartition("/")[0]
            rows, count = self._rows(stratum)

        def quantile(scores: Array, level: float) -> float:
            return conformal_quantile(
                scores[rows], alpha=level, trunks=self.trunks[rows], weights=self.weights[rows]
            )

        sides = self.how.sides
        if sides == "symmetric":
            low = high = quantile(np.maximum(self.low, self.high), alpha)
        else:
            each = alpha / 2 if sides == "separate" else alpha
            low = math.inf if sides == "upper" else quantile(self.low, each)
            high = math.inf if sides == "lower" else quantile(self.high, each)
        return Correction(low=low, high=high, stratum=stratum, trunks=count)

    def interval(
        self,
        lower: ArrayLike,
        upper: ArrayLike,
        *,
        strata: Sequence[str] | None = None,
        alpha: float | None = None,
    ) -> tuple[Array, Array]:
        """Calibrated bounds, [n] each, in the units of the forecasts; infinite (or the support's) on too little evidence.

        Args:
            lower: forecast of the lower quantile, [n], finite.
            upper: of the upper one.
            strata: a path each, [n]; one never seen asks its parents.
            alpha: in place of the one calibrated for; 0 for the whole support.
        """
        lows, highs = ordered(*aligned(lower=lower, upper=upper))
        paths = [""] * len(lows) if strata is None else list(strata)
        if len(paths) != len(lows):
            raise UserError(
                f"strata must have one path a row, {len(lows)} in all, found {len(paths)}"
            )
        each = {path: self.correction(path, alpha=alpha) for path in set(paths)}
        # An infinite widening of a width of 0 must still be infinite, not NaN.
        unit = (
            np.maximum(highs - lows, np.finfo(np.float64).tiny)
            if self.how.scaled
            else np.ones(len(lows))
        )
        lows = lows - np.array([each[path].low for path in paths]) * unit
        highs = highs + np.array([each[path].high for path in paths]) * unit
        crossed = lows > highs
        lows[crossed] = highs[crossed] = (lows[crossed] + highs[crossed]) / 2
        return np.clip(lows, *self.how.support), np.clip(highs, *self.how.support)

    @property
    def state(self) -> dict[str, Any]:
        """All of it as JSON values; infinite numbers as the strings "inf" and "-inf", for JSON has none."""
        return {
            "how": {**asdict(self.how), "support": plain(self.how.support)},
            "strata": list(self.strata),
            "trunks": self.trunks.tolist(),
            **{name: plain(getattr(self, name)) for name in ("low", "high", "weights")},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Calibration:
        """The calibration that `state` was taken of."""
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
        """The rows in a stratum or below it, and how many trunks they are of."""
        inside = [
            not stratum or path == stratum or path.startswith(stratum + "/") for path in self.strata
        ]
        rows = np.array(inside) & (self.weights > 0)
        return rows, len(np.unique(self.trunks[rows]))
