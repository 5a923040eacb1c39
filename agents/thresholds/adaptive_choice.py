"""Choice of the hyperparameters of `Adaptive` on other model pairs.

choice = best_choice(np.stack([speeds_of(trace, costs, 16) for trace, costs in taught]))
schedule = choice.schedule(costs, start=trace.acceptance, most=16)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from trainenv.agents.thresholds.contract import Floats
from trainenv.agents.thresholds.controls import ReplayedSchedule
from trainenv.decoding.schedules import Adaptive
from trainenv.decoding.traces import CostModel, Trace
from trainenv.tools.checks import number

_DRAWS = 2  # replays of each choice on a trace


@dataclass(frozen=True, kw_only=True)
class AdaptiveChoice:
    """Hyperparameters of `Adaptive` that do not depend on the pair.

    Args:
        memory: Weight of the estimate before each token, at least 0 and below 1.
        threshold: Probability of a drafted token below which the block ends after it, 0 to 1.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    memory: float = 0.98
    threshold: float = 0.0

    def __post_init__(self) -> None:
        number("memory", self.memory, least=0, below=1)
        number("threshold", self.threshold, least=0, most=1)

    def schedule(self, costs: CostModel, *, start: float, most: int) -> Adaptive:
        """Return the schedule of a model pair.

        Args:
            costs: Times of the pair.
            start: Estimate of the acceptance at the start.
            most: Greatest draft length.
        """
        return Adaptive.of(
            costs, most=most, memory=self.memory, threshold=self.threshold, start=start
        )


CHOICES = tuple(
    AdaptiveChoice(memory=memory, threshold=threshold)
    for memory, threshold in product((0.85, 0.95, 0.98, 0.995), (0.0, 0.1, 0.25))
)
"""Choices that are tried."""


def speeds_of(trace: Trace, costs: CostModel, most: int) -> Floats:
    """Return the speed-up of each of `CHOICES` on a task, [C].

    Args:
        trace: Trace of the task.
        costs: Times of the pair.
        most: Greatest draft length.
    """
    start = trace.acceptance
    return np.array(
        [
            ReplayedSchedule(schedule=choice.schedule(costs, start=start, most=most), draws=_DRAWS)
            .replay(trace, costs)
            .speedup
            for choice in CHOICES
        ]
    )


def best_choice(speeds: Floats) -> AdaptiveChoice:
    """Return the choice with the best mean speed, as a share of the best of each task.

    Args:
        speeds: Speed-up of each of `CHOICES` on each task, [T, C].
    """
    shares = speeds / speeds.max(axis=1, keepdims=True)
    return CHOICES[int(shares.mean(axis=0).argmax())]
