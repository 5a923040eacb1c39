"""Recommendation for one model pair: what a short trace says, and what other pairs teach.

A trace of a minute has few texts, so its best settings are partly luck. The landscape of the trace
is therefore averaged with that of a general policy, as if the latter were `prior` further texts.
With an exact rule, the schedule `Adaptive` is replayed on the same texts, and recommended if it is
faster: no fixed settings follow a text whose acceptance changes.

The confidence comes from the bootstrap over the texts of the trace (Efron 1979): the share of the
resamples in which the recommended settings are within 5 % of the best of that resample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trainenv.agents.thresholds.adaptive_choice import AdaptiveChoice
from trainenv.agents.thresholds.contract import Floats
from trainenv.agents.thresholds.controls import ReplayedSchedule
from trainenv.agents.thresholds.meta import LATTICE, Kernel
from trainenv.agents.thresholds.tasks import DecodingTask
from trainenv.decoding.schedules import Adaptive
from trainenv.tools.checks import number, whole

NEAR = 0.05
"""Loss of speed that still counts as near the best."""
RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Settings for a model pair, and how sure they are.

    Attributes:
        values: Best fixed settings by name.
        schedule: Schedule to decode with; None to keep the fixed settings.
        drafts: False if the target alone is faster than any settings.
        speedup: Expected speed-up over the target alone.
        fixed_speedup: Expected speed-up of the fixed settings.
        low: Lower end of the 95 % interval of the speed-up over texts.
        high: Upper end of the interval.
        confidence: Share of the resampled texts in which the settings are within 5 % of the best.
        acceptance: Chance that a drafted token is accepted.
        distance: Total-variation distance to the target.
        texts: Number of texts of the trace.
        informed: True if other pairs were used.
    """

    values: Mapping[str, float]
    schedule: Adaptive | None
    drafts: bool
    speedup: float
    fixed_speedup: float
    low: float
    high: float
    confidence: float
    acceptance: float
    distance: float
    texts: int
    informed: bool

    def sentence(self) -> str:
        """Return the recommendation in one sentence."""
        if not self.drafts:
            return (
                "decode with the target alone: the best settings would be "
                f"{self.speedup:.2f} × as fast"
            )
        settings = ", ".join(f"{name} {value:.3g}" for name, value in self.values.items())
        if self.schedule is not None:
            settings = (
                f"the adaptive schedule with memory {self.schedule.memory:.3g}, threshold "
                f"{self.schedule.threshold:.3g}, start {self.schedule.start:.2f}"
            )
        return (
            f"use {settings}: {self.speedup:.2f} × as fast as the target alone "
            f"({self.low:.2f} to {self.high:.2f}), within {100 * NEAR:.0f} % of the best in "
            f"{100 * self.confidence:.0f} % of resamples"
        )

    def to_json(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        schedule = None
        if self.schedule is not None:
            schedule = asdict(self.schedule)
        return {**vars(self), "values": dict(self.values), "schedule": schedule}


@dataclass(frozen=True, kw_only=True)
class Recommender:
    """Recommend settings.

    Args:
        policy: General policy; None to rely on the trace alone.
        choice: Hyperparameters of the schedule `Adaptive`; None for fixed settings only.
        prior: Weight of the policy, as a number of texts.
        seed: Random seed of the bootstrap.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    policy: Kernel | None = field(default=None, repr=False)
    choice: AdaptiveChoice | None = None
    prior: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        number("prior", self.prior, least=0)
        whole("seed", self.seed, least=0)

    def recommend(self, task: DecodingTask) -> Recommendation:
        """Return the recommendation for the rows of a task that methods may see."""
        points = task.space.lattice(LATTICE)
        times, worth = landscapes(task, points)
        chosen = self.choose(task, worth.mean(axis=0))
        values = task.space.values(points[chosen])
        found = task.measure(values)
        fixed_speedup = found["speedup"]
        schedule = None
        if self.choice is not None and task.rule == "exact":
            schedule = self.choice.schedule(task.costs, start=task.trace.acceptance, most=task.k)
            own = texts_of(task, schedule)
            times = np.column_stack([times, own])
            worth = np.column_stack([worth, 1 / own])
            if own.mean() < times[:, chosen].mean():
                chosen = len(points)
                found = task.replayed(ReplayedSchedule(schedule=schedule))
            else:
                schedule = None
        draws = np.random.default_rng(self.seed).integers(len(times), size=(RESAMPLES, len(times)))
        resampled = worth[draws].mean(axis=1)  # [B, N]
        near = resampled[:, chosen] >= (1 - NEAR) * resampled.max(axis=1)
        speedups = 1 / times[draws, chosen].mean(axis=1)
        low, high = np.quantile(speedups, (0.025, 0.975))
        return Recommendation(
            values=values,
            schedule=schedule,
            drafts=found["score"] >= 1,
            speedup=found["speedup"],
            fixed_speedup=fixed_speedup,
            low=float(low),
            high=float(high),
            confidence=float(near.mean()),
            acceptance=found["acceptance"],
            distance=found["distance"],
            texts=len(times),
            informed=self.policy is not None,
        )

    def choose(self, task: DecodingTask, worth: Floats) -> int:
        """Return the index of the recommended point of the lattice.

        Args:
            task: Task.
            worth: Mean score over the texts at each point, [N].
        """
        if self.policy is None:
            return int(worth.argmax())
        texts = task.trace.rows
        expected = self.policy.landscape(task.context())
        return int((texts * worth / worth.max() + self.prior * expected).argmax())


def landscapes(task: DecodingTask, points: Floats) -> tuple[Floats, Floats]:
    """Return time and score of each text at each point, [R, N] each.

    The time is a share of that of the target alone.
    """
    times = np.empty((task.trace.rows, len(points)))
    worth = np.empty_like(times)
    for row in range(task.trace.rows):
        trace = task.trace.select([row])
        for place, point in enumerate(points):
            found = task.score(task.space.values(point), trace)
            times[row, place] = 1 / found.speedup
            worth[row, place] = task.worth(found)
    return times, worth


def texts_of(task: DecodingTask, schedule: Adaptive) -> Floats:
    """Return the time of each text, as a share of that of the target alone, [R]."""
    control = ReplayedSchedule(schedule=schedule)
    texts = [task.trace.select([row]) for row in range(task.trace.rows)]
    return np.array([1 / control.replay(text, task.costs).speedup for text in texts])
