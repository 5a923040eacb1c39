"""The nouns of verification: branches that were trained, and the verdict on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from trainenv.types.forecasting import Forecast
from trainenv.types.planning import Cost, Measure, Outcome
from trainenv.types.step import Intervention

if TYPE_CHECKING:
    pass

Fate = Literal["control", "accepted", "passed", "rejected", "stopped", "failed"]


"""Of a branch: it did nothing; it became the run; it would have, but another was better; it was refused; it clearly lost and was
stopped early; it could not be run, or diverged."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Δ ln training loss of a branch against doing nothing, step by step on the same batches.

    Attributes:
        mean: over the steps, nats.
        error: standard error of the mean; inf for fewer than two steps.
        steps: that both were trained for.
    """

    mean: float
    error: float
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A drafted future that was run for real beside doing nothing, and what became of it.

    Attributes:
        interventions: the sequence, one a decision.
        score: the draft's, nats; NaN where it has none.
        forecast: what the model said; None where it was not asked.
        expected: Δ ln validation loss against doing nothing where the branch ends, as drafted: 90 %
            interval and median. None: no forecast.
        outcome: what was measured.
        losses: training loss of each step.
        delta: Δ ln validation loss that was measured, nats; NaN: it was not.
        annealed_delta: the same after the reference cool-down.
        paired: the statistics of the training losses; None where there are none.
        fate: what became of it.
        reason: why, in words.
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
        """Why it cannot become the run, whatever the rule: it failed, diverged or was stopped.

        Empty where it can.
        """
        if self.outcome.error:
            return self.outcome.error
        return "it diverged" if self.outcome.diverged else ""


@runtime_checkable
class AcceptRule(Protocol):
    """Says whether a branch may become the run.

    A frozen dataclass, asked only of branches that are not lost.
    """

    @property
    def measure(self) -> Measure:
        """What rollouts must measure for it."""
        ...

    def objection(self, branch: Branch, control: Branch, /) -> str:
        """Why the branch is refused, in words; empty where it is accepted."""
        ...

    def rank(self, branch: Branch, /) -> float:
        """Of those that are accepted the one with the lowest becomes the run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What verifying a draft came to.

    Attributes:
        branches: the control that does nothing first, then as drafted.
        accepted: the place of the branch that is to become the run; None: none.
        reason: one sentence.
        steps: real steps of a branch.
        cost: of all branches, cool-downs and evaluations.
        wasted: FLOPs of it that do not become the run's.
    """

    branches: tuple[Branch, ...]
    accepted: int | None
    reason: str
    steps: int
    cost: Cost
    wasted: float = 0.0

    @property
    def control(self) -> Branch:
        """The branch that does nothing."""
        return self.branches[0]

    @property
    def winner(self) -> Branch | None:
        """The branch that is to become the run."""
        return None if self.accepted is None else self.branches[self.accepted]
