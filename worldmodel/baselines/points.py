"""Forecasts with quantiles from point forecasts.

The quantiles are those of the errors of the point forecast on held-out trunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainenv.worldmodel.baselines.folds import folds
from trainenv.worldmodel.baselines.risk import Risks
from trainenv.worldmodel.baselines.scale import acts, outcomes, unsquash
from trainenv.worldmodel.examples import LEVELS, TARGETS, Examples, Floats, Predictions

Points = Callable[[Examples], Floats]
"""Examples → Δ [n, 3] on the scale of `scale`: horizon, annealed, final."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedPoints:
    """A point forecast of Δ with its spread, and a forecast of risks.

    Args:
        points: Point forecast.
        offsets: [3, 5] offsets of the quantiles of each target, on the scale of `scale`.
        risks: Forecast of divergence, instability and recovery.
    """

    points: Points
    offsets: Floats
    risks: Risks

    def predict(self, examples: Examples) -> Predictions:
        """See `Fitted`."""
        around = self.points(examples)[:, :, None] + self.offsets  # [n, 3, 5]
        return predictions(examples, unsquash(around), self.risks)


def no_difference(examples: Examples) -> Floats:
    """Forecast Δ = 0 for every branch, [n, 3]."""
    return np.zeros((len(examples), len(TARGETS)))


def predictions(examples: Examples, quantiles: Floats, risks: Risks) -> Predictions:
    """Combine quantiles of Δ [n, 3, 5] and a forecast of risks.

    Quantiles that cross are sorted; a branch that does nothing gets Δ = 0.
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
    """Forecast each branch by a fit that has not seen its trunk, [n, 3] on the scale.

    It is NaN for trunks that are in no fold, because they have no candidates.
    """
    found = np.full((len(examples), len(TARGETS)), np.nan)
    for out in folds(examples):
        found[out] = fit(examples.where(~out))(examples.where(out))
    return found


def offsets(examples: Examples, forecast: Floats, *, centred: bool) -> Floats:
    """Return the quantiles of a forecast's errors over candidates that do something, [3, 5].

    Args:
        examples: Branches and their outcomes.
        forecast: [n, 3] forecasts for held-out trunks, on the scale of `scale`.
        centred: True to keep the forecast as the median, because it is a claim; False to move the
            median to the median of the outcomes.
    """
    errors = np.where(acts(examples)[:, None], outcomes(examples) - forecast, np.nan)
    known = [column[~np.isnan(column)] for column in errors.T]
    if not len(known[TARGETS.index("final")]):  # no branch was trained to the end of the run
        known[TARGETS.index("final")] = known[TARGETS.index("annealed")]
    found = np.zeros((len(TARGETS), len(LEVELS)))
    for place, column in enumerate(known):
        if len(column):
            found[place] = np.quantile(column, LEVELS)
    if centred:
        side = np.sign(np.array(LEVELS) - 0.5)
        found = side * np.maximum(side * found, 0.0)
    return found
