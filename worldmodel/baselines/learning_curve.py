"""Families of learning curves as baselines: pow3, the exponential, and an ensemble.

The ensemble is that of Domhan, Springenberg & Hutter 2015 (see `curves`).

These curves do not depend on actions: every branch continues as the run did, and Δ = 0. They do
forecast the run itself, and so divergence (the loss is above that of a uniform guess by the end of
a decision) and recovery (the loss is back at its best). No family rises, so their forecast of
divergence depends only on how near the run is to it.

Deviation: examples keep features and no curves, so the curve is reconstructed from the features:
the level now, and the slopes of ln loss over 1, 4 and 16 decisions. These are taken as the slopes
in the middle of their spans and interpolated linearly in ln(distance). Losses are in units of the
loss of a uniform guess.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trainenv.types import DECISIONS, UserError
from trainenv.worldmodel import curves
from trainenv.worldmodel.baselines.points import FittedPoints, held_out, no_difference, offsets
from trainenv.worldmodel.baselines.risk import Rates, Risk
from trainenv.worldmodel.examples import LEVELS, Examples, Floats
from trainenv.worldmodel.features import STATE

NAMES = ("pow3", "exponential", "ensemble")
_SPANS = (1, 4, 16)  # decisions over which slopes are known
_ROWS = 48  # rows of the reconstructed curve
_TOLERANCE = 0.01  # distance of ln loss from its best up to which it counts as recovered


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A baseline made from one forecaster of `trainenv.worldmodel.curves`.

    Args:
        forecaster: Name of the forecaster: `pow3`, `exponential` or `ensemble`.

    Raises:
        UserError: the forecaster is none of these.
    """

    forecaster: str = "ensemble"

    def __post_init__(self) -> None:
        if self.forecaster not in NAMES:
            raise UserError(
                f"forecaster must be one of {', '.join(NAMES)}, found {self.forecaster!r}"
            )

    def fit(self, examples: Examples) -> FittedPoints:
        """See `Baseline`.

        From other runs only frequencies are learned: of the index's firing, and of Δ.
        """
        return FittedPoints(
            points=no_difference,
            offsets=offsets(examples, held_out(lambda _: no_difference, examples), centred=True),
            risks=CurveRisks(forecaster=self.forecaster, rates=Rates.of(examples)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveRisks:
    """Risks of a run that follows its forecast curve; the same for every branch of a snapshot.

    Attributes:
        forecaster: Name of the forecaster.
        rates: Frequencies of the training branches, for the index's firing.
    """

    forecaster: str
    rates: Rates

    def __call__(self, examples: Examples) -> Risk:
        """See `Risks`."""
        risk = self.rates(examples)
        for snapshot in np.unique(examples.snapshot):
            rows = examples.snapshot == snapshot
            steps = int(examples.decision_steps[snapshot])
            hazard, recovery = self._of_snapshot(examples.states[snapshot], steps)
            risk.hazard[rows] = hazard
            risk.recovery[rows] = recovery
        return risk

    def _of_snapshot(self, state: Floats, decision: int) -> tuple[Floats, Floats]:
        """Return hazards [4] and quantiles of the recovery time [5] of one snapshot."""
        history = reconstructed(state, decision)
        fitted = curves.make(self.forecaster).fit(history)
        ahead = history.steps[-1] + decision * np.arange(1, DECISIONS + 1)
        forecast = fitted.predict(ahead, np.ones(DECISIONS))
        lost = np.maximum.accumulate(1 - forecast.chance_below(1.0))
        sound = np.concatenate([[1.0], 1 - lost])
        hazard = np.clip(1 - sound[1:] / np.maximum(sound[:-1], 1e-12), 0.0, 1.0)
        above = _known(state, "above_best", 0.0)
        best = float(history.losses[-1]) * math.exp(_TOLERANCE - above)
        start = float(above <= _TOLERANCE)
        back = np.concatenate([[start], forecast.chance_below(best)])  # P(recovered), by decision
        back = np.maximum.accumulate(back)
        # The first decision by which each level is reached; DECISIONS if it is not reached.
        late = np.minimum((back < np.array(LEVELS)[:, None]).sum(axis=1), DECISIONS)
        return hazard, late.astype(np.float64)


def reconstructed(state: Floats, decision: int) -> curves.History:
    """Reconstruct the loss curve from features [F], over the last 16 decisions or since the start.

    Args:
        state: [F] features of the state.
        decision: Steps of a decision.
    """
    done = max(1, round(math.exp(_known(state, "past", 0.0)) * decision))
    span = min(_SPANS[-1] * decision, done)
    ago = np.round(np.linspace(span, 0, min(_ROWS, span + 1))).astype(np.int64)
    ago = np.unique(ago)[::-1]  # steps before now, the oldest first
    positions = []
    slopes = []  # of ln loss, per step
    for count in _SPANS:
        slope = _known(state, f"slope_{count}", math.nan) / 10 / (count * decision)
        if math.isfinite(slope):
            positions.append(math.log(count * decision / 2))
            slopes.append(slope)
    along = np.zeros(len(ago))
    if slopes:
        along = np.interp(np.log(np.maximum(ago, 0.5)), positions, slopes)
    change = np.cumsum((along[1:] + along[:-1]) / 2 * -np.diff(ago))
    change = np.concatenate([[0.0], change])  # change of ln loss since the oldest row
    now = _known(state, "level", 0.0) + _known(state, "train_gap", 0.0)
    logs = np.clip(now + change - change[-1], -10.0, 10.0)
    return curves.History(
        steps=(done - ago).astype(np.float64), losses=np.exp(logs), lrs=np.ones(len(ago))
    )


def _known(state: Floats, name: str, otherwise: float) -> float:
    """Return a feature of a state, or `otherwise` if it was not measured."""
    value = float(state[STATE.index(name)])
    if not math.isfinite(value):
        return otherwise
    return value
