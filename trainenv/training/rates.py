"""`PlannedRates`: the learning rates of a run, past and to come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainenv.training import schedules
from trainenv.types import Schedule, as_number

_NEAR = 20_000  # steps ahead whose rates are computed one by one
_POINTS = 1024  # steps computed beyond them; rates between these are interpolated


@dataclass(frozen=True, kw_only=True)
class PlannedRates:
    """Factors on the base learning rate, by step.

    Attributes:
        schedule: Factor by step and progress of the budget.
        reset_warmup: Steps of the warm-up that follows a momentum reset.
        stress: Factor by step that plants an instability; None for none.
    """

    schedule: Schedule
    reset_warmup: int
    stress: Callable[[int], float] | None = None

    def factor(
        self, step: int, horizon: schedules.Horizon, *, lr_scale: float, reset_at: int | None
    ) -> float:
        """Return the factor for the step after `step` completed ones, planted stress left out.

        Args:
            step: Number of completed optimizer steps.
            horizon: Budget of the run.
            lr_scale: Factor of the interventions in force.
            reset_at: Step of the newest momentum reset; None if there was none.
        """
        warmth = schedules.warmth(step, reset_at, self.reset_warmup)
        factor = as_number(
            self.schedule(step, horizon.progress(step)), "what schedule(step, progress) returns"
        )
        return factor * lr_scale * warmth

    def planted(self, step: int) -> float:
        """Return the factor that is planted for the step after `step` completed ones."""
        if self.stress is None:
            return 1.0
        return as_number(self.stress(step), "what stress(step) returns")


def ahead(factor: Callable[[int], float], start: int, end: int) -> list[float]:
    """Return `factor(step)` for each step from `start` to `end`; those far ahead are interpolated.

    A schedule is Python code: asked for a million steps it would take seconds.
    """
    near = range(start, min(end, start + _NEAR))
    rates = [factor(step) for step in near]
    if near.stop < end:
        points = np.unique(np.linspace(near.stop, end - 1, _POINTS).round().astype(np.int64))
        known = [factor(step) for step in points.tolist()]
        rates += np.interp(np.arange(near.stop, end), points, known).tolist()
    return rates
