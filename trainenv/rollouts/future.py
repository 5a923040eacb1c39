"""Futures of a run: `Future` as far as it was trained, `LiveBranch` while it is training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trainenv.tools.error_text import describe_error
from trainenv.types import Branchable, Intervention, Snapshot, Telemetry, UserError

InterventionSequence = tuple[Intervention, ...]


@dataclass(frozen=True, kw_only=True)
class Future:
    """A future as far as it was trained.

    Attributes:
        applied: Intervention of each decision so far.
        steps: Optimizer steps since the fork.
        state: Snapshot of the fork, for the run to become; None if the branch was lost.
        telemetry: Telemetry of each step.
        evaluations: Step and validation loss (nats per token) of each evaluation, the start
            included.
        flops: FLOPs of the optimizer steps alone.
        diverged: True if the validation loss passed the cap.
        stopped: Reason for which the branch was stopped early; empty if it was not.
        error: Description of the error that ended the branch; empty if there was none.
    """

    applied: InterventionSequence = ()
    steps: int = 0
    state: Snapshot | None = field(default=None, repr=False)
    telemetry: tuple[Telemetry, ...] = field(default=(), repr=False)
    evaluations: tuple[tuple[int, float], ...] = ()
    flops: float = 0.0
    diverged: bool = False
    stopped: str = ""
    error: str = ""

    @property
    def ended(self) -> bool:
        """True if training cannot continue from here."""
        lost = self.steps > 0 and self.state is None
        return lost or bool(self.error)


@dataclass
class LiveBranch:
    """A branch under training, which becomes a `Future`.

    Attributes:
        sequence: Interventions, one for each decision.
        start: Future that training continues from.
        evaluations: Step and validation loss (nats per token) of each evaluation so far.
        state: Snapshot of the fork once its training has ended.
        flops: FLOPs of the optimizer steps, those of `start` included.
        diverged: True if the validation loss passed the cap.
        stopped: Reason for which the branch was stopped early; empty if it was not.
        error: Description of the error that ended the branch; empty if there was none.
        new_steps: Optimizer steps since `start`, those of a cool-down included.
        telemetry: Telemetry of each step, those of `start` included.
        steps: Optimizer steps since the fork.
    """

    sequence: InterventionSequence
    start: Future
    evaluations: tuple[tuple[int, float], ...]
    state: Snapshot | None = None
    flops: float = 0.0
    diverged: bool = False
    stopped: str = ""
    error: str = ""
    new_steps: int = 0

    def __post_init__(self) -> None:
        self.telemetry = list(self.start.telemetry)
        self.steps = self.start.steps

    @property
    def does_nothing(self) -> bool:
        """True for the control."""
        return all(intervention.does_nothing for intervention in self.sequence)

    @property
    def ended(self) -> bool:
        """True if the branch is not trained further."""
        return self.diverged or bool(self.stopped or self.error)

    def intervene(self, fork: Branchable, decision: int) -> None:
        """Apply the intervention of a decision to the fork.

        An intervention out of bounds is an error of this branch alone.
        """
        try:
            fork.apply(self.sequence[decision])
        except UserError as error:
            self.error = describe_error(error)

    def add_steps(self, fresh: Sequence[Telemetry]) -> None:
        """Add the telemetry of new steps.

        A non-finite training loss is no divergence here, since a batch without labels has no loss.
        Only the validation loss decides.
        """
        self.telemetry += fresh
        self.steps += len(fresh)
        self.new_steps += len(fresh)

    def add_evaluation(self, step: int, loss: float, cap: float) -> None:
        """Add a validation loss; the branch has diverged unless the loss is below the cap."""
        self.evaluations = (*self.evaluations, (step, loss))
        self.diverged = self.diverged or not loss < cap

    def future(self) -> Future:
        """Return the branch as far as it was trained."""
        return Future(
            applied=self.sequence,
            steps=self.steps,
            state=self.state,
            telemetry=tuple(self.telemetry),
            evaluations=self.evaluations,
            flops=self.flops,
            diverged=self.diverged,
            stopped=self.stopped,
            error=self.error,
        )
