"""Nouns of verification: branches that were trained, and the verdict on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from trainenv.types.forecasting import Forecast
from trainenv.types.planning import Cost, Measure, Outcome
from trainenv.types.step import Intervention

Fate = Literal["control", "accepted", "passed", "rejected", "stopped", "failed"]
"""Fate of a branch.

- control: it did nothing
- accepted: it became the run
- passed: it was acceptable, but another one was better
- rejected: the rule refused it
- stopped: it was clearly worse and was stopped early
- failed: it could not be run, or diverged
"""


@dataclass(frozen=True, slots=True)
class Paired:
    """Δ ln training loss of a branch against doing nothing, step by step on the same batches.

    Attributes:
        mean: Mean over the steps, in nats.
        error: Standard error of the mean; inf for fewer than two steps.
        steps: Number of steps that both were trained for.
    """

    mean: float
    error: float
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Planned future that was trained for real next to doing nothing, with its fate.

    Attributes:
        interventions: Sequence of interventions, one a decision.
        score: Score of the plan in nats; NaN if it has none.
        forecast: Forecast of the model; None if it was not asked.
        expected: Forecast of `delta`: lower bound, median and upper bound of its 90 % interval.
            None without a forecast.
        outcome: Measurements.
        losses: Training loss of each step.
        delta: Measured Δ ln validation loss against doing nothing, in nats; NaN if not measured.
        annealed_delta: The same after the reference cool-down.
        paired: Statistics of the training losses; None without any.
        fate: Fate of the branch.
        reason: Reason for its fate, in words.
    """

    interventions: tuple[Intervention, ...]
    score: float
    outcome: Outcome
    forecast: Forecast | None = None
    expected: tuple[float, float, float] | None = None
    losses: tuple[float, ...] = field(default=(), repr=False)
    delta: float = math.nan
    annealed_delta: float = math.nan
    paired: Paired | None = None
    fate: Fate = "rejected"
    reason: str = ""

    @property
    def lost(self) -> str:
        """Reason why no rule can accept it: it failed, diverged or was stopped.

        Empty if one can.
        """
        if self.outcome.error:
            return self.outcome.error
        if self.outcome.diverged:
            return "it diverged"
        return ""


@runtime_checkable
class AcceptRule(Protocol):
    """Rule by which a branch may become the run.

    A frozen dataclass, asked only about branches that are not lost.
    """

    @property
    def measure(self) -> Measure:
        """Loss that rollouts must measure for the rule."""
        ...

    def objection(self, branch: Branch, control: Branch, /) -> str:
        """Return the reason why the branch is refused; empty if it is accepted."""
        ...

    def rank(self, branch: Branch, /) -> float:
        """Return a number; the accepted branch with the lowest becomes the run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Result of verifying a plan.

    Attributes:
        branches: Branches, the control that does nothing first, then as planned.
        accepted: Place of the branch that is to become the run; None for none.
        reason: Reason, one sentence.
        steps: Real steps of a branch.
        cost: Cost of all branches, cool-downs and evaluations included.
        wasted: FLOPs of the cost that do not become part of the run.
    """

    branches: tuple[Branch, ...]
    accepted: int | None
    reason: str
    steps: int
    cost: Cost
    wasted: float = 0.0

    @property
    def control(self) -> Branch:
        """Branch that does nothing."""
        return self.branches[0]

    @property
    def winner(self) -> Branch | None:
        """Branch that is to become the run; None for none."""
        if self.accepted is None:
            return None
        return self.branches[self.accepted]
