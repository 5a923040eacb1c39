"""What makes the networks' numbers honest: intervals that cover, risks that are frequencies, and when to abstain.

Fitted on trunks that the networks have not seen. Intervals are calibrated in units (asinh(Δ /
0.01)), as wide as the forecast says times what it was wrong by; being monotone, the way back to
nats keeps their coverage. Strata are what is seen when it is
forecast: whether the run is alarmed, and whether the interventions raise, lower or leave the
learning rate.
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

ALARM = 0.3  # of `fired_recency`: the index fired within 1.2 decisions
RISE = 0.05  # |Σ ln factors on the learning rate| from which it is raised or lowered
ALPHA = 0.1
CQR_HOW = CQR(alpha=ALPHA, sides="symmetric", scaled=True)
_EVERYTHING = 1e3  # widths
_LEAST_TRUNKS = 5  # in which it happened, for a risk to be calibrated
_FIRED = STATE.index("fired_recency")


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibrations:
    """All of a model's, applied to what its networks say.

    Attributes:
        intervals: by target, for candidates as they come.
        picked: by target, for those that are picked by their median of `annealed`.
        divergence, instability: of probabilities.
        disagreement: in nats, above which the model abstains.
        alpha: by target, the share of outcomes that intervals may miss: 0.1, unless late labels
            have moved it.
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
        """From branches of trunks that the networks did not learn from.

        Args:
            examples: those branches.
            raw: what the networks say of them.
            how: the score of intervals.
        """
        rows = np.flatnonzero(examples.candidate)
        some = examples.where(rows)
        said = raw.where(rows)
        strata = strata_of(some.states[some.snapshot], some.actions[..., 0].sum(axis=1))
        intervals = {}
        picked = {}
        for target in TARGETS:
            outcome = units(getattr(some, target))
            quantiles = units(getattr(said, target))
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
            decisions = _decisions(some, known, lower, upper, outcome, said)
            picked[target] = fit_selected(how, decisions, Lowest(by="median"))
        return cls(
            intervals=intervals,
            picked=picked,
            divergence=_risk(raw.divergence, examples.diverged >= 0, examples.trunk),
            instability=_risk(raw.instability, examples.fired, examples.trunk),
            disagreement=disagreement_limit(said.disagreement, alpha=ALPHA, trunks=some.trunk),
        )

    def apply(
        self, raw: Predictions, strata: NDArray[np.str_], *, picks: bool = False
    ) -> Predictions:
        """What the networks said, mended.

        Args:
            raw: of n branches.
            strata: [n] as `strata_of` gives them.
            picks: for candidates that are picked among many by their median, not for candidates as
                they come.
        """
        mended = {}
        paths, place = np.unique(strata, return_inverse=True)
        for target in TARGETS:
            quantiles = units(getattr(raw, target))
            low = quantiles[:, 0]
            high = quantiles[:, -1]
            corrections = [self._correction(target, str(path), picks) for path in paths]
            # With too few trunks to calibrate on, everything is possible.
            down, up = (
                np.minimum([getattr(one, side) for one in corrections], _EVERYTHING)[place]
                for side in ("low", "high")
            )
            low, high = low - down * (high - low), high + up * (high - low)
            middle = quantiles[:, 1:-1]
            mended[target] = nats(
                np.stack(
                    [np.minimum(low, middle[:, 0]), *middle.T, np.maximum(high, middle[:, -1])],
                    axis=1,
                )
            )
        return replace(
            raw,
            **mended,
            hazard=scaled_hazard(raw.hazard, self.divergence(raw.divergence)),
            instability=self.instability(raw.instability),
        )

    def _correction(self, target: str, stratum: str, picks: bool) -> Correction:
        key = target, stratum, picks
        if key not in self._memo:
            calibration, stratum = (
                (self.picked[target], "") if picks else (self.intervals[target], stratum)
            )
            # Below 1/(K + 1) the interval of K trunks is everything, which helps nobody: late
            # labels move the level no further.
            trunks = calibration.correction("", alpha=ALPHA).trunks
            alpha = max(self.alpha[target], min(ALPHA, 1 / (trunks + 1)))
            found = calibration.correction(stratum, alpha=alpha)
            while found.stratum and math.isinf(
                found.high
            ):  # a level below the one it was made for asks for more trunks
                found = calibration.correction(found.stratum.rpartition("/")[0], alpha=alpha)
            self._memo[key] = found
        return self._memo[key]

    @property
    def state(self) -> dict[str, Any]:
        """All of it as JSON values."""
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
        """The calibrations that `state` was taken of."""
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
    """Risks as they are where it happened in too few trunks: Platt's targets for those that are sound are 1/(K + 2), no rarer."""
    if len(np.unique(trunks[happened])) < _LEAST_TRUNKS:
        return Platt()
    return Platt.fit(risk, happened.astype(float), trunks=trunks, least_positives=_LEAST_TRUNKS)


def _decisions(
    some: Examples,
    known: NDArray[np.bool_],
    lower: Floats,
    upper: Floats,
    outcome: Floats,
    said: Predictions,
) -> list[Decision]:
    """The candidates of each snapshot whose outcome is known, as something to pick from."""
    median = said.annealed[:, len(LEVELS) // 2]
    groups = [
        np.flatnonzero((some.snapshot == snapshot) & known) for snapshot in np.unique(some.snapshot)
    ]
    return [
        Decision(
            trunk=int(some.trunk[those[0]]),
            forecasts={"lower": lower[those], "upper": upper[those], "median": median[those]},
            outcome=outcome[those],
        )
        for those in groups
        if len(those)
    ]


def strata_of(states: Floats, ln_lr: Floats) -> NDArray[np.str_]:
    """The stratum of each forecast, [n]: `calm` or `alarmed`, then `raised`, `lowered` or `kept`.

    Args:
        states: [n, F] features.
        ln_lr: [n] ln of the product of all factors on the learning rate.
    """
    mood = np.where(states[:, _FIRED] > ALARM, "alarmed", "calm")
    way = np.select([ln_lr > RISE, ln_lr < -RISE], ["raised", "lowered"], "kept")
    return np.char.add(np.char.add(mood, "/"), way)


def scaled_hazard(hazard: Floats, divergence: Floats) -> Floats:
    """Hazards [n, D] that multiply up to probabilities of divergence [n], in the same proportions of −ln(1 − h)."""
    logs = -np.log1p(-np.clip(hazard, 0.0, 1 - 1e-9))
    wanted = -np.log1p(-np.clip(divergence, 0.0, 1 - 1e-9))
    share: Floats = wanted / np.maximum(logs.sum(axis=1), 1e-12)
    return -np.expm1(-logs * share[:, None])


def units(delta: Floats) -> Floats:
    """Δ in nats → units; see `networks`."""
    found: Floats = np.arcsinh(delta / UNIT)
    return found


def nats(found: Floats) -> Floats:
    """Units → Δ in nats; at most some 100 nats either way, which is everything."""
    delta: Floats = UNIT * np.sinh(np.clip(found, -10.0, 10.0))
    return delta
