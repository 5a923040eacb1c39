"""From one number a branch to a forecast with quantiles: add the quantiles of what that number was off by on held-out trunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainenv.worldmodel.baselines.folds import folds
from trainenv.worldmodel.baselines.risk import Risks
from trainenv.worldmodel.baselines.scale import acts, outcomes, unsquash
from trainenv.worldmodel.examples import LEVELS, TARGETS, Examples, Floats, Predictions

Points = Callable[[Examples], Floats]
"""Examples → [n, 3] on the scale of `scale`: horizon, annealed, final."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedPoints:
    """A point forecast of Δ with its spread, and whatever is said of risks.

    Args:
        points: the forecast.
        offsets: [3, 5] what to add for each quantile of a target, on the scale.
        risks: of divergence, instability and recovery.
    """

    points: Points
    offsets: Floats
    risks: Risks

    def predict(self, examples: Examples) -> Predictions:
        """See `Fitted`."""
        around = self.points(examples)[:, :, None] + self.offsets  # [n, 3, 5]
        return predictions(examples, unsquash(around), self.risks)


def no_difference(examples: Examples) -> Floats:
    """[n, 3] of those to whom every branch is alike."""
    return np.zeros((len(examples), len(TARGETS)))


def predictions(examples: Examples, quantiles: Floats, risks: Risks) -> Predictions:
    """From quantiles [n, 3, 5] of Δ, in any order of the levels, and risks.

    What does nothing gets Δ = 0.
    """
    known = np.where(acts(examples)[:, None, None], np.sort(quantiles, axis=2), 0.0)
    risk = risks(examples)
    return Predictions(
        **{target: known[:, place] for place, target in enumerate(TARGETS)},
        hazard=risk.hazard,
        instability=risk.instability,
        recovery=risk.recovery,
        disagreement=np.zeros(len(examples)),
    )


def held_out(fit: Callable[[Examples], Points], examples: Examples) -> Floats:
    """[n, 3] the forecast of each branch, on the scale, by a fit that has not seen its trunk; NaN where none was held out."""
    found = np.full((len(examples), len(TARGETS)), np.nan)
    for out in folds(examples):
        found[out] = fit(examples.where(~out))(examples.where(out))
    return found


def offsets(examples: Examples, forecast: Floats, *, centred: bool) -> Floats:
    """[3, 5] quantiles of the errors of a forecast [n, 3], both on the scale, over the candidates that do something.

    Args:
        examples: what happened.
        forecast: of trunks held out.
        centred: keep the forecast itself as the median, because it is a claim; else it moves to the
            median of what happened.
    """
    errors = np.where(acts(examples)[:, None], outcomes(examples) - forecast, np.nan)
    known = [column[~np.isnan(column)] for column in errors.T]
    if not len(
        known[TARGETS.index("final")]
    ):  # none of the branches went on so far: as after the cool-down
        known[TARGETS.index("final")] = known[TARGETS.index("annealed")]
    found = np.array(
        [np.quantile(column, LEVELS) if len(column) else np.zeros(len(LEVELS)) for column in known]
    )
    if centred:
        side = np.sign(np.array(LEVELS) - 0.5)
        found = side * np.maximum(side * found, 0.0)
    return found
