"""Values that the five steps of the branching loop hand to each other.

    check_triggers → Decision     rewind → RewindPoint     plan → Proposal     verify → Verified

A step that ends the decision raises `Skipped`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trainenv.agents.branching.rewind_points import RewindPoint
from trainenv.rollouts.executor import NOTHING, Rollouts
from trainenv.tools.error_text import describe_error
from trainenv.types import (
    DECISIONS,
    Branch,
    Event,
    Outcome,
    Plan,
    Run,
    RunHistory,
    Snapshot,
    Verdict,
)
from trainenv.verification.verify import Verification

_TRIALS = ("warmup", "checkpoint")


class Skipped(Exception):
    """A decision that is not taken.

    Args:
        reason: Reason in words, for the record.
        fault: True if something failed.
        control_failed: True if the run left alone could not be trained, which would happen again.
        no_gain: True if no plan promises enough.
    """

    def __init__(
        self,
        reason: str,
        *,
        fault: bool = False,
        control_failed: bool = False,
        no_gain: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fault = fault
        self.control_failed = control_failed
        self.no_gain = no_gain

    @classmethod
    def because_of(cls, error: Exception) -> Skipped:
        """Return the error itself if it is a `Skipped`, else one for the fault."""
        if isinstance(error, Skipped):
            return error
        return cls(describe_error(error), fault=True)


@dataclass(kw_only=True)
class Decision:
    """A decision under way.

    Attributes:
        number: Number in the run, from 1 on.
        trigger: Reason for it: `diverged`, `harm`, `fired`, `regression`, `warmup` or `checkpoint`.
        at: Step of the run when the trigger was met.
        harm: Loss on the clean probe above its usual level then, in nats; NaN where unknown.
        accounted: Total of the run's ledger, in FLOPs, up to which waste is accounted for.
        events: Events so far, in order.
    """

    number: int
    trigger: str
    at: int
    harm: float
    accounted: float
    events: list[Event] = field(default_factory=list)

    @property
    def is_trial(self) -> bool:
        """True if no harm called for the decision."""
        return self.trigger in _TRIALS


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Branches to verify, and how.

    Attributes:
        point: Rewind point that the branches start from.
        plan: Ranked candidates, the run left alone among them.
        verification: Settings for training and judging them.
        steps: Steps of each branch.
        decision_steps: Steps from one intervention of a sequence to the next.
        limit: FLOPs that the verification may waste.
        history: History that the plan was made from; None for a rollback, which needs no model.
    """

    point: RewindPoint
    plan: Plan
    verification: Verification
    steps: int
    decision_steps: int
    limit: float
    history: RunHistory | None = None

    def verify(self, run: Run) -> tuple[Rollouts, Verdict]:
        """Train the branches and judge them; the run stays as it is.

        The control of a rollback is not trained: it is what the run has done since.

        Args:
            run: Run.
        """
        since = self.point.since
        start: Snapshot | None = None
        control: Branch | None = None
        if since:
            start = self.point.start.snapshot()
            validation = (run.evaluate(),)
            flops = run.flops_per_evaluation
            control = Branch(
                interventions=NOTHING,
                score=0.0,
                outcome=Outcome(looks=(len(since),), validation=validation, flops=flops),
                losses=tuple(one.loss for one in since),
            )
        rollouts = self.verification.rollouts(
            run, decision_steps=self.decision_steps, start=start, limit=self.limit
        )
        horizon = DECISIONS * self.decision_steps
        verdict = self.verification.verify(
            rollouts, self.plan, horizon=horizon, steps=self.steps, control=control
        )
        return rollouts, verdict
