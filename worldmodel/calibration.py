"""Calibration of the networks' forecasts: intervals, probabilities and the limit for abstaining.

All are fitted on trunks that the networks have not seen. Intervals are calibrated in units
(asinh(Δ / 0.01)), in proportion to their forecast width. The conversion to nats is monotone, so it
keeps their coverage.

Strata use only what is known at the forecast: whether the uncertainty index fired recently, and
whether the interventions raise, lower or keep the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.worldmodel.conformal import (
    CQR,
    Calibration,
    Correction,
    Decision,
    Lowest,
    Platt,
    disagreement_limit,
    fit_selected,
)
from trainenv.worldmodel.examples import LEVELS, TARGETS, Examples, Predictions
from trainenv.worldmodel.features import STATE, Floats
from trainenv.worldmodel.networks import UNIT

ALARM = 0.3  # `fired_recency` above this means that the index fired within 1.2 decisions
RISE = 0.05  # |Σ ln factors on the learning rate| above which it counts as raised or lowered
ALPHA = 0.1  # share of outcomes that may fall outside of their intervals
CQR_HOW = CQR(alpha=ALPHA, sides="symmetric", scaled=True)
_WIDEST = 1e3  # largest widening, in widths of the forecast interval
_LEAST_TRUNKS = 5  # a risk is calibrated on at least this number of trunks in which it happened
_FIRED = STATE.index("fired_recency")


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibrations:
    """All calibrations of a model.

    Attributes:
        intervals: Calibration of each target's interval, for a candidate at random.
        picked: Calibration of each target's interval, for candidates picked by their median of
            `annealed`.
        divergence, instability: Calibrations of the two probabilities.
        disagreement: Disagreement above which the model abstains, in nats.
        alpha: Share of outcomes that each target's intervals may miss: 0.1, unless late labels have
            moved it.
    """

    intervals: Mapping[str, Calibration]
    picked: Mapping[str, Calibration]
    divergence: Platt
    instability: Platt
    disagreement: float
    alpha: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(TARGETS, ALPHA))
    _memo: dict[tuple[str, str, bool], Correction] = field(
        default_factory=dict, init=False, repr=False
    )

    @classmethod
    def fit(cls, examples: Examples, raw: Predictions, *, how: CQR = CQR_HOW) -> Calibrations:
        """Fit all calibrations.

        Args:
            examples: Branches of trunks that the networks have not seen.
            raw: Forecasts of the networks for these branches.
            how: Score of the intervals.
        """
        rows = np.flatnonzero(examples.candidate)
        some = examples.where(rows)
        forecast = raw.where(rows)
        strata = branch_strata(some)
        intervals = {}
        picked = {}
        for target in TARGETS:
            outcome = units(getattr(some, target))
            quantiles = units(getattr(forecast, target))
            known = np.isfinite(outcome)
            lower = quantiles[:, 0]
            upper = quantiles[:, -1]
            intervals[target] = how.fit(
                lower[known],
                upper[known],
                outcome[known],
                trunks=some.trunk[known],
                strata=list(strata[known]),
            )
            decisions = _decisions(some, known, lower, upper, outcome, forecast)
            picked[target] = fit_selected(how, decisions, Lowest(by="median"))
        return cls(
            intervals=intervals,
            picked=picked,
            divergence=_risk(raw.divergence, examples.diverged >= 0, examples.trunk),
            instability=_risk(raw.instability, examples.fired, examples.trunk),
            disagreement=disagreement_limit(forecast.disagreement, alpha=ALPHA, trunks=some.trunk),
        )

    def apply(
        self, raw: Predictions, strata: NDArray[np.str_], *, picks: bool = False
    ) -> Predictions:
        """Return calibrated forecasts.

        Args:
            raw: Forecasts of the networks for n branches.
            strata: [n] strata from `strata_of`.
            picks: True for candidates that are picked among many by their median; False for a
                candidate at random.
        """
        calibrated = {}
        paths, place = np.unique(strata, return_inverse=True)
        for target in TARGETS:
            quantiles = units(getattr(raw, target))
            corrections = [self._correction(target, str(path), picks) for path in paths]
            # A correction from too few trunks is infinite.
            down = np.minimum([one.low for one in corrections], _WIDEST)[place]
            up = np.minimum([one.high for one in corrections], _WIDEST)[place]
            width = quantiles[:, -1] - quantiles[:, 0]
            middle = quantiles[:, 1:-1]
            low = np.minimum(quantiles[:, 0] - down * width, middle[:, 0])
            high = np.maximum(quantiles[:, -1] + up * width, middle[:, -1])
            calibrated[target] = nats(np.stack([low, *middle.T, high], axis=1))
        return replace(
            raw,
            **calibrated,
            hazard=scaled_hazard(raw.hazard, self.divergence(raw.divergence)),
            instability=self.instability(raw.instability),
        )

    def _correction(self, target: str, stratum: str, picks: bool) -> Correction:
        key = target, stratum, picks
        if key not in self._memo:
            calibration = self.intervals[target]
            if picks:
                calibration = self.picked[target]
                stratum = ""
            # Late labels move the level no lower than 1/(K + 1): below it, the interval of K trunks
            # is infinite and of no use.
            trunks = calibration.correction("", alpha=ALPHA).trunks
            alpha = max(self.alpha[target], min(ALPHA, 1 / (trunks + 1)))
            found = calibration.correction(stratum, alpha=alpha)
            # A lower level needs more trunks than the stratum was made for: ask its parents.
            while found.stratum and math.isinf(found.high):
                found = calibration.correction(found.stratum.rpartition("/")[0], alpha=alpha)
            self._memo[key] = found
        return self._memo[key]

    @property
    def state(self) -> dict[str, Any]:
        """The calibrations as JSON values."""
        return {
            "intervals": {target: one.state for target, one in self.intervals.items()},
            "picked": {target: one.state for target, one in self.picked.items()},
            "divergence": self.divergence.state,
            "instability": self.instability.state,
            "disagreement": self.disagreement,
            "alpha": dict(self.alpha),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Calibrations:
        """Return the calibrations with this `state`."""
        return cls(
            intervals={
                target: Calibration.from_state(one) for target, one in state["intervals"].items()
            },
            picked={target: Calibration.from_state(one) for target, one in state["picked"].items()},
            divergence=Platt.from_state(state["divergence"]),
            instability=Platt.from_state(state["instability"]),
            disagreement=float(state["disagreement"]),
            alpha={target: float(state["alpha"][target]) for target in TARGETS},
        )


def _risk(risk: Floats, happened: NDArray[np.bool_], trunks: NDArray[np.int64]) -> Platt:
    """Calibrate a risk that happened in enough trunks; leave a rarer one unchanged.

    Platt's target for a sound branch is 1/(K + 2) and no lower, which is too much for a rare risk.
    """
    if len(np.unique(trunks[happened])) < _LEAST_TRUNKS:
        return Platt()
    return Platt.fit(risk, happened.astype(float), trunks=trunks, least_positives=_LEAST_TRUNKS)


def _decisions(
    some: Examples,
    known: NDArray[np.bool_],
    lower: Floats,
    upper: Floats,
    outcome: Floats,
    forecast: Predictions,
) -> list[Decision]:
    """Return one decision for each snapshot: its candidates with known outcomes."""
    median = forecast.annealed[:, len(LEVELS) // 2]
    groups = [
        np.flatnonzero((some.snapshot == snapshot) & known) for snapshot in np.unique(some.snapshot)
    ]
    return [
        Decision(
            trunk=int(some.trunk[rows[0]]),
            forecasts={"lower": lower[rows], "upper": upper[rows], "median": median[rows]},
            outcome=outcome[rows],
        )
        for rows in groups
        if len(rows)
    ]


def branch_strata(examples: Examples) -> NDArray[np.str_]:
    """Return the stratum of each branch, [n]."""
    ln_lr = examples.actions[..., 0].sum(axis=1)
    return strata_of(examples.states[examples.snapshot], ln_lr)


def strata_of(states: Floats, ln_lr: Floats) -> NDArray[np.str_]:
    """Return strata [n]: `calm` or `alarmed`, then `/raised`, `/lowered` or `/kept`.

    Args:
        states: [n, F] features of the states.
        ln_lr: [n] ln of the product of all factors on the learning rate.
    """
    alarm = np.where(states[:, _FIRED] > ALARM, "alarmed", "calm")
    direction = np.select([ln_lr > RISE, ln_lr < -RISE], ["raised", "lowered"], "kept")
    return np.char.add(np.char.add(alarm, "/"), direction)


def scaled_hazard(hazard: Floats, divergence: Floats) -> Floats:
    """Scale hazards [n, D] so that together they give probabilities of divergence [n].

    The proportions of −ln(1 − hazard) between the D decisions are kept.
    """
    logs = -np.log1p(-np.clip(hazard, 0.0, 1 - 1e-9))
    wanted = -np.log1p(-np.clip(divergence, 0.0, 1 - 1e-9))
    share: Floats = wanted / np.maximum(logs.sum(axis=1), 1e-12)
    return -np.expm1(-logs * share[:, None])


def units(delta: Floats) -> Floats:
    """Convert Δ from nats to units; see `networks`."""
    found: Floats = np.arcsinh(delta / UNIT)
    return found


def nats(found: Floats) -> Floats:
    """Convert Δ from units to nats, within ±110 nats, which no loss exceeds."""
    delta: Floats = UNIT * np.sinh(np.clip(found, -10.0, 10.0))
    return delta
