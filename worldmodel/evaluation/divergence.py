"""Forecasts of divergence: probabilities against what happened, and how early the risk passed its limit.

All of it is forecast at the snapshot. The *alarm* is the first decision by whose end the forecast
chance of having diverged, 1 − Π (1 − hazard), is at or above the limit. Of a branch that diverged
in decision d, an alarm at k ≤ d *caught* it, with a lead of d − k decisions; a later alarm, or
none, did not. A model that says "at once" of everything has the longest leads: read them beside the
false alarms and the Brier score by decision.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainenv.worldmodel.evaluation.statistics import Floats, Ints
from trainenv.worldmodel.examples import Examples, Predictions


def risky(examples: Examples) -> NDArray[np.bool_]:
    """[n] branches whose divergence is asked for: candidates, and the control that stands for doing nothing."""
    control: NDArray[np.bool_] = examples.kind == "control"
    return examples.candidate | control


def brier(chance: Floats, happened: NDArray[np.bool_]) -> Floats:
    """[n] squared error of a probability [n] (Brier 1950)."""
    error: Floats = (chance - happened) ** 2
    return error


def brier_by_decision(hazard: Floats, diverged: Ints) -> Floats:
    """[n] squared error of the chance to have diverged by the end of a decision, mean over the four; from hazards [n, 4]."""
    by = diverged[:, None] <= np.arange(hazard.shape[1])
    happened = by & (diverged[:, None] >= 0)
    error: Floats = ((_cumulative(hazard) - happened) ** 2).mean(axis=1)
    return error


def alarm(hazard: Floats, limit: float) -> Ints:
    """[n] decision in which the risk of hazards [n, 4] passes the limit; 4 if in none."""
    passed = _cumulative(hazard) >= limit - 1e-12  # 1 − (1 − 0.2) is 0.19999999999999996
    at: Ints = np.where(passed.any(axis=1), passed.argmax(axis=1), hazard.shape[1])
    return at


def leads(
    examples: Examples, predictions: Predictions, limit: float
) -> tuple[Floats, Floats, Floats]:
    """How divergences were seen coming.

    Returns:
        [n] 1 where one was caught, 0 where it was not, NaN where the branch did not diverge; [n]
        steps of lead where caught, else NaN; [n] 1 for a false alarm, 0 for none, NaN where the
        branch diverged.
    """
    at = alarm(predictions.hazard, limit)
    diverged = examples.diverged >= 0
    caught = diverged & (at <= examples.diverged)
    steps: Ints = (examples.diverged - at) * examples.decision_steps[examples.snapshot]
    return (
        np.where(diverged, caught.astype(np.float64), np.nan),
        np.where(caught, steps.astype(np.float64), np.nan),
        np.where(diverged, np.nan, (at < predictions.hazard.shape[1]).astype(np.float64)),
    )


def _cumulative(hazard: Floats) -> Floats:
    return np.asarray(1 - np.cumprod(1 - hazard, axis=1), dtype=np.float64)
