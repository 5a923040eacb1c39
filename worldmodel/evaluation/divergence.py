"""Scores of forecasts of divergence: probabilities, and how early an alarm is raised.

All forecasts are made at the snapshot. The *alarm* is the first decision by whose end the forecast
probability of having diverged, 1 − Π (1 − hazard), reaches the limit. If a branch diverged in
decision d, an alarm at k ≤ d *caught* the divergence, with a lead of d − k decisions; a later alarm
or none missed it. A model that always raises the alarm at once has the longest leads, so read them
together with the false alarms and the Brier score by decision.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainenv.worldmodel.evaluation.statistics import Floats, Ints
from trainenv.worldmodel.examples import Examples, Predictions


def risky(examples: Examples) -> NDArray[np.bool_]:
    """Return a mask [n] of the branches to evaluate: candidates, and controls (doing nothing)."""
    control: NDArray[np.bool_] = examples.kind == "control"
    return examples.candidate | control


def brier(chance: Floats, happened: NDArray[np.bool_]) -> Floats:
    """Return the squared errors [n] of probabilities [n] (Brier 1950)."""
    error: Floats = (chance - happened) ** 2
    return error


def brier_by_decision(hazard: Floats, diverged: Ints) -> Floats:
    """Return the squared error of the probability to have diverged, mean over decisions, [n].

    Args:
        hazard: [n, 4] forecast hazards.
        diverged: [n] decisions in which the branches diverged; −1 if they did not.
    """
    by = diverged[:, None] <= np.arange(hazard.shape[1])
    happened = by & (diverged[:, None] >= 0)
    error: Floats = ((_cumulative(hazard) - happened) ** 2).mean(axis=1)
    return error


def alarm(hazard: Floats, limit: float) -> Ints:
    """Return the decision in which the risk of hazards [n, 4] reaches the limit, [n]; 4 if none."""
    passed = _cumulative(hazard) >= limit - 1e-12  # 1 − (1 − 0.2) is 0.19999999999999996
    at: Ints = np.where(passed.any(axis=1), passed.argmax(axis=1), hazard.shape[1])
    return at


def leads(
    examples: Examples, predictions: Predictions, limit: float
) -> tuple[Floats, Floats, Floats]:
    """Compare alarms with divergences.

    Returns:
        Three columns [n]. Caught: 1 for a caught divergence, 0 for a missed one, NaN where the
        branch did not diverge. Lead: steps of lead where caught, else NaN. False alarm: 1 for an
        alarm, 0 for none, NaN where the branch diverged.
    """
    at = alarm(predictions.hazard, limit)
    diverged = examples.diverged >= 0
    caught = diverged & (at <= examples.diverged)
    steps: Ints = (examples.diverged - at) * examples.decision_steps[examples.snapshot]
    raised = at < predictions.hazard.shape[1]
    return (
        np.where(diverged, caught.astype(np.float64), np.nan),
        np.where(caught, steps.astype(np.float64), np.nan),
        np.where(diverged, np.nan, raised.astype(np.float64)),
    )


def _cumulative(hazard: Floats) -> Floats:
    return np.asarray(1 - np.cumprod(1 - hazard, axis=1), dtype=np.float64)
