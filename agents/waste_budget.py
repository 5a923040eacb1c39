"""Compute that may be thrown away, and that the budget is owed: stated before the run, never exceeded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from trainenv.config.schema import BranchingConfig
from trainenv.types import Run

_KEPT, _LATE = (
    0.5,
    0.8,
    # of what may be thrown away, the share that trials leave for harm until this share of the run
    # is over
)
_WORKER = 500_000_000  # bytes of a process that verifies, torch and a corpus in it


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What a loop may cost at most, said before the run; going back from a lost loss is not counted, or the run is over.

    Attributes:
        steps: worth of compute that may be thrown away; they are taken off the run's own.
        memory: bytes of forks and rewind points at once.
        disk: bytes of the starts of decisions, kept for replays.
        decision: steps' worth of compute that a decision may throw away, of one branch.
    """

    steps: int
    memory: int
    disk: int
    decision: float

    @classmethod
    def of(
        cls,
        run: Run,
        settings: BranchingConfig,
        *,
        width: int,
        workers: int,
        decision: float,
    ) -> CostEstimate:
        """Of a run that is not steered yet, with so many branches and processes at once."""
        weights = sum(p.numel() * p.element_size() for p in run.model.parameters())
        state = 3 * weights  # with both moments; a fork has gradients beside it
        forks = (width + 1) * (2 * state + weights)  # and what each has come to
        budget = max(run.config.steps, run.horizon.end)
        decisions = budget // settings.every + budget // max(1, settings.refractory_steps)
        return cls(
            steps=round(settings.max_waste * budget),
            memory=forks + (settings.rewind_points + 1) * state + workers * _WORKER,
            disk=decisions * state * settings.replayable,
            decision=decision,
        )

    @property
    def affords(self) -> str:
        """What the steps are enough for, in a sentence; where they are not, what to change."""
        count = int(self.steps / self.decision)
        if count >= 2:
            return f"that is enough for about {count} decisions, of which half are kept for harm until late in the run"
        return (
            f"that is too little for more than {count} decision(s), each of which may cost {self.decision:.0f} steps: "
            "raise branching.max_waste, or lower validation.sequences or branching.verify_steps"
        )

    def __str__(self) -> str:
        memory = _size(self.memory)
        disk = _size(self.disk)
        return f"steering costs at most {self.steps} steps, {memory} of memory and {disk} on disk"


def _size(count: int) -> str:
    """Bytes as a person would say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{math.ceil(count / 1e6)} MB"


@dataclass
class WasteBudget:
    """FLOPs of one run's loop.

    Attributes:
        allowed: that may be thrown away: branches that were not taken, cool-downs, evaluations and
            steps that were rewound.
        wasted: thrown away so far.
        owed: spent beside the run's own steps, but not yet taken off its budget: less than a
            step's.
        trials: thrown away in decisions that no harm has called for.
    """

    allowed: float
    wasted: float = 0.0
    owed: float = 0.0
    trials: float = 0.0

    @classmethod
    def of(cls, run: Run, share: float) -> WasteBudget:
        """A share of the budget of a run that is not steered yet."""
        return cls(share * run.horizon.end * run.flops_ahead)

    @property
    def left(self) -> float:
        """FLOPs that may still be thrown away."""
        return max(0.0, self.allowed - self.wasted)

    def spares(self, run: Run) -> bool:
        """Whether a trial may begin: until late in the run, trials that nothing calls for leave half for what does."""
        return self.trials < _KEPT * self.allowed or run.step >= _LATE * run.horizon.end

    def widest(self, most: int, price: Callable[[int], float]) -> int:
        """The greatest K up to `most` whose price, FLOPs thrown away at most, is left; 0 where none is."""
        return next((k for k in range(most, 0, -1) if price(k) <= self.left), 0)

    def throw_away(self, flops: float, *, trial: bool = False) -> None:
        """Note what was thrown away, in a trial or otherwise; who did it takes it off the run's budget."""
        self.wasted += flops
        self.trials += flops * trial

    def owe(self, run: Run, flops: float) -> None:
        """Take FLOPs off the run's budget, in whole steps; the rest is owed."""
        self.owed += flops
        steps = int(self.owed // run.flops_ahead)
        if steps:
            run.spend(steps)
            self.owed -= steps * run.flops_ahead

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class ComputeDebt:
    """FLOPs that were spent and not yet taken off the budget: below 0 what was taken off too much, less than a step."""

    owed: float = 0.0

    def settle(self, run: Run, flops: float) -> int:
        """Add FLOPs and give the steps' worth that is now to come off the budget, rounded up; the rest is kept for next time."""
        self.owed += flops
        each = run.flops_ahead
        steps = max(0, -int(-self.owed // each)) if each else 0
        self.owed -= steps * each
        return steps
