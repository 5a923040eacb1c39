"""Families of learning curves: pow3, the exponential, and the ensemble of Domhan, Springenberg & Hutter 2015 (see `curves`).

They know nothing of actions: every branch goes on as the run did, and Δ = 0. What they do forecast
is the run itself, and so divergence (the chance that the loss is above a uniform guess's by the end
of a decision) and recovery (that it is back at its best). No family rises, so what they know of
divergence is how near the run is to it.

Deviation: examples keep features, not curves. The curve is drawn from those: its level now, and the
slopes of ln loss over 1, 4 and 16 decisions, taken as the slopes in the middle of these stretches,
linear in ln(distance) between them. Losses are in units of a uniform guess's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trainenv.types import UserError
from trainenv.worldmodel import curves
from trainenv.worldmodel.baselines.points import FittedPoints, held_out, no_difference, offsets
from trainenv.worldmodel.baselines.risk import Rates, Risk
from trainenv.worldmodel.examples import LEVELS, Examples, Floats
from trainenv.worldmodel.features import DECISIONS, STATE

NAMES = ("pow3", "exponential", "ensemble")
_SPANS = (1, 4, 16)  # decisions over which slopes are known
_ROWS = 48  # of the drawn curve
_TOLERANCE = 0.01  # of ln loss: as good as its best


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One forecaster of `trainenv.worldmodel.curves`.

    Args:
        forecaster: `pow3`, `exponential` or `ensemble`.

    Raises:
        UserError: there is no such forecaster here.
    """

    forecaster: str = "ensemble"

    def __post_init__(self) -> None:
        if self.forecaster not in NAMES:
            raise UserError(
                f"forecaster must be one of {', '.join(NAMES)}, found {self.forecaster!r}"
            )

    def fit(self, examples: Examples) -> FittedPoints:
        """See `Baseline`.

        Of other runs only frequencies are learned: how often the index fired, and how far Δ's
        spread.
        """
        return FittedPoints(
            points=no_difference,
            offsets=offsets(examples, held_out(lambda _: no_difference, examples), centred=True),
            risks=GoingOn(forecaster=self.forecaster, rates=Rates.of(examples)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class GoingOn:
    """Risks of the run, if it goes on as its curve says; the same for every branch of a snapshot."""

    forecaster: str
    rates: Rates

    def __call__(self, examples: Examples) -> Risk:
        """See `Risks`."""
        risk = self.rates(examples)
        for snapshot in np.unique(examples.snapshot):
            rows = examples.snapshot == snapshot
            steps = int(examples.decision_steps[snapshot])
            risk.hazard[rows], risk.recovery[rows] = self._outlook(examples.states[snapshot], steps)
        return risk

    def _outlook(self, state: Floats, decision: int) -> tuple[Floats, Floats]:
        """Hazards [4] and quantiles of the recovery time [5] of one snapshot."""
        history = drawn(state, decision)
        fitted = curves.make(self.forecaster).fit(history)
        forecast = fitted.predict(
            history.steps[-1] + decision * np.arange(1, DECISIONS + 1), np.ones(DECISIONS)
        )
        lost = np.maximum.accumulate(1 - forecast.chance_below(1.0))
        sound = np.concatenate([[1.0], 1 - lost])
        hazard = np.clip(1 - sound[1:] / np.maximum(sound[:-1], 1e-12), 0.0, 1.0)
        above = _known(state, "above_best", 0.0)
        best = float(history.losses[-1]) * math.exp(_TOLERANCE - above)
        back = np.maximum.accumulate(
            np.concatenate([[float(above <= _TOLERANCE)], forecast.chance_below(best)])
        )  # by decision
        late = [
            int(np.argmax(back >= level)) if (back >= level).any() else DECISIONS
            for level in LEVELS
        ]
        return hazard, np.array(late, dtype=np.float64)


def drawn(state: Floats, decision: int) -> curves.History:
    """The curve that the features of a state [F] tell of, over the last 16 decisions or since the start."""
    done = max(1, round(math.exp(_known(state, "past", 0.0)) * decision))
    span = min(_SPANS[-1] * decision, done)
    behind = np.unique(np.round(np.linspace(span, 0, min(_ROWS, span + 1))).astype(np.int64))[
        ::-1
    ]  # steps ago, the oldest first
    slopes = [
        _known(state, f"slope_{count}", math.nan) / 10 / (count * decision) for count in _SPANS
    ]  # of ln loss, a step
    at = np.array(
        [
            (math.log(count * decision / 2), slope)
            for count, slope in zip(_SPANS, slopes)
            if math.isfinite(slope)
        ]
    )
    along = (
        np.interp(np.log(np.maximum(behind, 0.5)), at[:, 0], at[:, 1])
        if len(at)
        else np.zeros(len(behind))
    )
    fallen = np.concatenate(
        [[0.0], np.cumsum((along[1:] + along[:-1]) / 2 * -np.diff(behind))]
    )  # since the oldest
    now = _known(state, "level", 0.0) + _known(state, "train_gap", 0.0)
    logs = np.clip(now + fallen - fallen[-1], -10.0, 10.0)
    return curves.History(
        steps=(done - behind).astype(np.float64), losses=np.exp(logs), lrs=np.ones(len(behind))
    )


def _known(state: Floats, name: str, otherwise: float) -> float:
    value = float(state[STATE.index(name)])
    return value if math.isfinite(value) else otherwise
