"""Intervals that hold for the candidates which planners pick.

The lowest of 128 forecasts is low partly by error, so intervals that cover 90 % of all candidates
cover far fewer of the picked. Replaying the planner's rule over past decisions and calibrating on
what it would have picked mends that: a rule that sees only its own decision's forecasts keeps the
trunks exchangeable, so `quantile` applies to the picks as they are. (Rules that look across
decisions need the swaps of Jin & Ren 2024, arXiv:2403.03868; ours don't.)

What is guaranteed, for trunks that the forecaster was not trained on, exchangeable with the new
one:
- The expected share of a new trunk's picks that lie in their intervals is ≥ 1 − α, over trunks at which the rule picks at all.
- `joint`: so is the expected share of its decisions all of whose picks lie in theirs.
- It holds for that very rule and way of proposing candidates, and no longer once the rule uses what was calibrated on the same
  trunks: calibrate the one on half of the trunks and the other on the rest.
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
"""Which candidates of a decision are picked: forecasts by name, [M] each → indices.

It never sees an outcome.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """What a planner chose among, once. Only the candidates that the rule picks need have been run.

    Args:
        trunk: the run that the snapshot is of.
        forecasts: "lower", "upper" and whatever else the rule reads ("mean", "risk", …), [M] each.
            Leave doing nothing out: its Δ is 0 by definition, and every such pick is covered for
            free.
        outcome: what happened, [M], in the units of the bounds; NaN where a candidate was not run,
            inf where it diverged.
        stratum: see `CQR.fit`.
    """

    trunk: str | int
    forecasts: Mapping[str, ArrayLike]
    outcome: ArrayLike
    stratum: str = ""


@dataclass(frozen=True, kw_only=True)
class Lowest:
    """The rule that picks the `count` candidates with the lowest forecast named `by`; the earlier one of a tie."""

    by: str = "mean"
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count must be 1 or more, found {self.count!r}; 1 picks the best")

    def __call__(self, forecasts: Mapping[str, Array]) -> NDArray[np.intp]:
        if self.by not in forecasts:
            raise UserError(
                f"the rule picks by {self.by!r}, found forecasts {sorted(forecasts)}; add it, or pick by one of them"
            )
        return np.argsort(forecasts[self.by], kind="stable")[: self.count]


def fit_selected(
    how: CQR, decisions: Sequence[Decision], rule: Rule, *, joint: bool = False
) -> Calibration:
    """Calibrate on what `rule` picks, replayed decision by decision.

    Args:
        how: the score and α, as for rows.
        decisions: of runs that the forecaster was not trained on, each with its own M; where the
            rule picks none, left out.
        rule: exactly what the planner will do, a function of one decision's forecasts alone.
        joint: cover all picks of a decision at once, instead of their greater share.

    Raises:
        UserError: a pick is out of range, twice there, or was not run; or there are no picks.
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
            "expected decisions at which the rule picks something, found none; calibrate with more decisions"
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
    """Scores (low, high) of the picks, [K] each."""
    missing = {"lower", "upper"} - set(decision.forecasts)
    if missing:
        raise UserError(
            f"a decision needs forecasts 'lower' and 'upper', found {sorted(decision.forecasts)}"
        )
    forecasts = dict(zip(decision.forecasts, aligned(**decision.forecasts)))
    outcome = np.asarray(decision.outcome, dtype=np.float64)
    if outcome.shape != forecasts["lower"].shape:
        raise UserError(
            f"outcome must have one entry a candidate, {forecasts['lower'].shape}, found {outcome.shape}"
        )
    picks = np.asarray(rule(forecasts))
    if picks.shape == (0,):
        return np.empty(0), np.empty(0)
    if (
        picks.ndim != 1
        or not np.issubdtype(picks.dtype, np.integer)
        or len(np.unique(picks)) < len(picks)
    ):
        raise UserError(
            f"a rule must return different indices of candidates, found {picks.tolist()!r}"
        )
    if picks.min() < 0 or picks.max() >= len(outcome):
        raise UserError(
            f"a rule must return indices from 0 to {len(outcome) - 1}, found {picks.tolist()!r}"
        )
    if np.isnan(outcome[picks]).any():
        raise UserError(
            f"picks {picks.tolist()} of trunk {decision.trunk!r} need outcomes, found NaN; run them (inf: diverged)"
        )
    return how.scores(forecasts["lower"][picks], forecasts["upper"][picks], outcome[picks])
