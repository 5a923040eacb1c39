"""Intervals that hold for the candidates which a planner picks.

The lowest of 128 forecasts is low partly by error, so intervals that cover 90 % of all candidates
cover far fewer picked ones. The remedy is to replay the planner's rule over past decisions and to
calibrate on its picks. A rule that sees only the forecasts of one decision keeps the trunks
exchangeable, so `quantile` applies to the picks without change. (Rules that compare decisions need
the swaps of Jin & Ren 2024, arXiv:2403.03868.)

Guarantees, for trunks that the forecaster was not trained on, exchangeable with the new one:

- The expected share of a new trunk's picks that lie in their intervals is ≥ 1 − α, over trunks in
  which the rule picks at all.
- With `joint`, the expected share of its decisions with all picks in their intervals is ≥ 1 − α.
- Both hold only for this rule and this way of proposing candidates, and only if the rule uses
  nothing that was calibrated on the same trunks: calibrate the rule on one half of the trunks and
  the intervals on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainenv.types import UserError
from trainenv.worldmodel.conformal.intervals import CQR, Calibration
from trainenv.worldmodel.conformal.quantile import Array, aligned, trunk_codes

Rule = Callable[[Mapping[str, Array]], Sequence[int] | NDArray[np.integer[Any]]]
"""A rule that picks candidates of a decision: forecasts by name, [M] each → indices.

It never sees an outcome.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """A planner's choice among M candidates. Only picked candidates need an outcome.

    Args:
        trunk: Run that the snapshot was taken from.
        forecasts: [M] forecasts by name: "lower", "upper" and what else the rule reads ("mean",
            "risk", …). Leave out doing nothing: its Δ is 0 by definition, so a pick of it would
            always be covered.
        outcome: [M] outcomes in the units of the bounds; NaN for a candidate that was not run, inf
            for one that diverged.
        stratum: Path of the stratum, see `CQR.fit`.
    """

    trunk: str | int
    forecasts: Mapping[str, ArrayLike]
    outcome: ArrayLike
    stratum: str = ""


@dataclass(frozen=True, kw_only=True)
class Lowest:
    """A rule that picks the candidates with the lowest forecasts, the first one in a tie.

    Args:
        by: Name of the forecast.
        count: Number of candidates to pick.

    Raises:
        UserError: count is below 1.
    """

    by: str = "mean"
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count must be 1 or more, found {self.count!r}; 1 picks the best")

    def __call__(self, forecasts: Mapping[str, Array]) -> NDArray[np.intp]:
        if self.by not in forecasts:
            raise UserError(
                f"the rule picks by {self.by!r}, found forecasts {sorted(forecasts)}; "
                "add it, or pick by one of them"
            )
        return np.argsort(forecasts[self.by], kind="stable")[: self.count]


def fit_selected(
    how: CQR, decisions: Sequence[Decision], rule: Rule, *, joint: bool = False
) -> Calibration:
    """Calibrate on the candidates that a rule picks, replayed decision by decision.

    Args:
        how: Kind of the scores and target coverage, as for rows.
        decisions: Decisions in runs that the forecaster was not trained on; M may differ between
            them. Decisions without a pick are left out.
        rule: The planner's rule, a function of one decision's forecasts alone.
        joint: True to cover all picks of a decision at once, False to cover their share.

    Raises:
        UserError: a pick is out of range, repeated, or was not run, or there are no picks.
    """
    rows: list[tuple[float, float, str, str]] = []
    for decision in decisions:
        low, high = _picked(how, decision, rule)
        if joint and len(low):
            low = low.max(keepdims=True)
            high = high.max(keepdims=True)
        rows += [
            (a, b, str(decision.trunk), decision.stratum)
            for a, b in zip(low.tolist(), high.tolist())
        ]
    if not rows:
        raise UserError(
            "expected decisions at which the rule picks something, found none; "
            "calibrate with more decisions"
        )
    lows, highs, trunks, strata = zip(*rows)
    return Calibration(
        how=how,
        low=np.array(lows),
        high=np.array(highs),
        trunks=trunk_codes(trunks, len(rows)),
        strata=strata,
        weights=np.ones(len(rows)),
    )


def _picked(how: CQR, decision: Decision, rule: Rule) -> tuple[Array, Array]:
    """Return the scores of the K picks, lower and upper, [K] each."""
    missing = {"lower", "upper"} - set(decision.forecasts)
    if missing:
        raise UserError(
            "a decision needs forecasts 'lower' and 'upper', "
            f"found {sorted(decision.forecasts)}; add the bounds"
        )
    forecasts = dict(zip(decision.forecasts, aligned(**decision.forecasts)))
    outcome = np.asarray(decision.outcome, dtype=np.float64)
    if outcome.shape != forecasts["lower"].shape:
        raise UserError(
            "outcome must have one entry for each candidate, "
            f"shape {forecasts['lower'].shape}, found {outcome.shape}"
        )
    picks = np.asarray(rule(forecasts))
    if picks.shape == (0,):
        return np.empty(0), np.empty(0)
    are_indices = picks.ndim == 1 and np.issubdtype(picks.dtype, np.integer)
    if not are_indices or len(np.unique(picks)) < len(picks):
        raise UserError(
            f"a rule must return different indices of candidates, found {picks.tolist()!r}"
        )
    if picks.min() < 0 or picks.max() >= len(outcome):
        raise UserError(
            f"a rule must return indices from 0 to {len(outcome) - 1}, found {picks.tolist()!r}"
        )
    if np.isnan(outcome[picks]).any():
        raise UserError(
            f"picks {picks.tolist()} of trunk {decision.trunk!r} need outcomes, found NaN; "
            "run them (inf: diverged)"
        )
    return how.scores(forecasts["lower"][picks], forecasts["upper"][picks], outcome[picks])
