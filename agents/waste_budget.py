"""Compute that may be wasted, and compute that the run's budget owes.

Both are announced before the run and never exceeded. *Wasted* are the FLOPs of branches that do not
become the run, of evaluations and cool-downs, of planning, and of steps that were rewound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from trainenv.config.schema import BranchingSettings
from trainenv.tools.sizes import size_in_words
from trainenv.types import Run

# Trials leave this share of the waste budget for harm, until the run is in its last fifth.
_KEPT = 0.5
_LATE = 0.8
_LARGEST_WASTE = 0.9  # what `branching.max_waste` may be at most
_WORKER = 500_000_000  # bytes of a worker process with torch and a corpus


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """Upper bounds on the cost of steering a run, for before it starts.

    A rewind after divergence is not counted: without it the run would be over.

    Attributes:
        steps: Compute that may be wasted, in steps; it is taken off the run's own budget.
        memory: Bytes of all forks and rewind points at once.
        disk: Bytes of the checkpoints that decisions are replayed from.
        decision: Compute that a decision with a single branch may waste, in steps.
        budget: Budget of the run in steps.
        sequences: Number of validation sequences, which each evaluation of a branch reads.
        follows: True if plans of the learning rate take effect without a trial.
        blind: Sentences on measurements that the run cannot make.
    """

    steps: int
    memory: int
    disk: int
    decision: float
    budget: int
    sequences: int
    follows: bool = False
    blind: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        run: Run,
        settings: BranchingSettings,
        *,
        width: int,
        workers: int,
        decision: float,
        follows: bool = False,
        blind: tuple[str, ...] = (),
    ) -> CostEstimate:
        """Estimate the cost for a run that is not steered yet.

        Args:
            run: Run.
            settings: Settings of the branching loop.
            width: Number of branches trained at once, without the control.
            workers: Number of worker processes.
            decision: Compute that a decision with a single branch may waste, in steps.
            follows: True if plans of the learning rate take effect without a trial.
            blind: Sentences on measurements that the run cannot make.
        """
        weights = sum(p.numel() * p.element_size() for p in run.model.parameters())
        state = 3 * weights  # with both moments of the optimizer
        forks = (width + 1) * (2 * state + weights)  # each with its gradients and its end state
        budget = max(run.config.steps, run.horizon.end)
        decisions = budget // settings.every + budget // max(1, settings.refractory_steps)
        return cls(
            steps=round(settings.max_waste * budget),
            memory=forks + (settings.rewind_points + 1) * state + workers * _WORKER,
            disk=decisions * state * settings.replayable,
            decision=decision,
            budget=budget,
            sequences=run.config.validation.sequences,
            follows=follows,
            blind=blind,
        )

    @property
    def affords(self) -> str:
        """Number of trials that the steps allow, in a sentence; or the settings to change."""
        count = int(self.steps / self.decision)
        if count >= 2:
            return (
                f"that is enough for about {count} decisions, "
                "of which half are kept for harm until late in the run"
            )
        enough = "enough for one trial only" if count else "too little for a trial"
        sentence = f"that is {enough}, which may cost {self.decision:.0f} steps: {self._remedy}"
        if self.follows:
            sentence += "; plans of the learning rate need no trial and are followed all the same"
        return sentence

    @property
    def _remedy(self) -> str:
        """Keys that make two decisions affordable, with the value that is needed or there now."""
        share = math.ceil(200 * self.decision / self.budget) / 100
        lower = f"lower validation.sequences ({self.sequences} now) or branching.verify_steps"
        if share > _LARGEST_WASTE:
            return lower
        return f"set branching.max_waste to {share:g} or more, or {lower}"

    def __str__(self) -> str:
        memory = size_in_words(self.memory)
        disk = size_in_words(self.disk)
        cost = f"steering costs at most {self.steps} steps, {memory} of memory and {disk} on disk"
        return "; ".join((cost, *self.blind))


@dataclass
class WasteBudget:
    """FLOPs that the branching loop may waste in one run.

    Attributes:
        allowed: FLOPs that may be wasted.
        wasted: FLOPs wasted so far.
        owed: FLOPs spent outside the run's own steps and not yet taken off its budget; less than
            a step.
        trials: FLOPs wasted in decisions that no harm called for.
    """

    allowed: float
    wasted: float = 0.0
    owed: float = 0.0
    trials: float = 0.0

    @classmethod
    def of(cls, run: Run, share: float) -> WasteBudget:
        """Return a share of the budget of a run that is not steered yet."""
        return cls(share * run.horizon.end * run.flops_ahead)

    @property
    def left(self) -> float:
        """FLOPs that may still be wasted."""
        return max(0.0, self.allowed - self.wasted)

    def left_in(self, run: Run) -> float:
        """Return the FLOPs that may still be wasted and that the run still has."""
        ahead = (run.horizon.end - run.step) * run.flops_ahead
        return min(self.left, ahead - self.owed)

    def has_for_trials(self, run: Run) -> bool:
        """Tell whether a trial may begin: until late in the run, half is kept for harm."""
        return self.trials < _KEPT * self.allowed or run.step >= _LATE * run.horizon.end

    def refusal(self, run: Run, flops: float, *, trial: bool = False) -> str:
        """Return the reason for skipping a decision; empty if it may be taken.

        Args:
            run: Run.
            flops: FLOPs that the decision may waste.
            trial: True if no harm called for it.
        """
        if flops > self.left_in(run):
            return self.shortfall(run, flops)
        if trial and not self.has_for_trials(run):
            had = _KEPT * self.allowed / run.flops_ahead
            return (
                f"no budget is left: trials have had their half of it ({had:.0f} steps), and the"
                " rest is kept for harm; raise branching.max_waste for more"
            )
        return ""

    def shortfall(self, run: Run, flops: float) -> str:
        """Return the reason for skipping a decision that may waste more FLOPs than are left."""
        each = run.flops_ahead
        return (
            f"no budget is left: a decision may cost {flops / each:.1f} steps in all (training, "
            f"evaluation and planning), {self.left_in(run) / each:.1f} of the "
            f"{self.allowed / each:.0f} that may be wasted are left; raise branching.max_waste, "
            "or lower validation.sequences or branching.verify_steps"
        )

    def widest(self, run: Run, most: int, price: Callable[[int], float]) -> int:
        """Return the largest number of branches, up to `most`, that is affordable; 0 for none.

        Args:
            run: Run.
            most: Largest number of branches.
            price: FLOPs that a number of branches may waste.
        """
        left = self.left_in(run)
        return next((count for count in range(most, 0, -1) if price(count) <= left), 0)

    def throw_away(self, flops: float, *, trial: bool = False) -> None:
        """Count FLOPs as wasted; the caller takes them off the run's budget."""
        self.wasted += flops
        self.trials += flops * trial

    def owe(self, run: Run, flops: float) -> None:
        """Take FLOPs off the run's budget in whole steps; the rest is owed."""
        self.owed += flops
        steps = int(self.owed // run.flops_ahead)
        if steps:
            run.spend(steps)
            self.owed -= steps * run.flops_ahead

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return asdict(self)


@dataclass
class ComputeDebt:
    """FLOPs not yet charged to the budget.

    Attributes:
        owed: FLOPs; negative, by less than a step, after rounding up to a whole step.
    """

    owed: float = 0.0

    def settle(self, run: Run, flops: float) -> int:
        """Add FLOPs, and return the whole steps to take off the budget now, rounded up."""
        self.owed += flops
        each = run.flops_ahead
        if not each:
            return 0
        steps = max(0, -int(-self.owed // each))
        self.owed -= steps * each
        return steps
