"""Futures as they are trained: what each has measured so far, and one that is still in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trainenv.tools.error_text import describe_error
from trainenv.types import Branchable, Intervention, Snapshot, Telemetry, UserError

Sequenced = tuple[Intervention, ...]


@dataclass(frozen=True, kw_only=True)
class Future:
    """Where a future has come to.

    Attributes:
        done: what was put in force at each decision so far.
        steps: trained since the run was forked.
        state: of the fork, for the run to become; None where it was lost.
        telemetry: of every step.
        looks: steps and validation losses so far, the start among them.
        flops: of the steps alone.
        diverged, stopped, error: how it ended, if it did.
    """

    done: Sequenced = ()
    steps: int = 0
    state: Snapshot | None = field(default=None, repr=False)
    telemetry: tuple[Telemetry, ...] = field(default=(), repr=False)
    looks: tuple[tuple[int, float], ...] = ()
    flops: float = 0.0
    diverged: bool = False
    stopped: str = ""
    error: str = ""


@dataclass
class Growing:
    """A future in the making."""

    sequence: Sequenced
    start: Future
    looks: tuple[tuple[int, float], ...]
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
    def over(self) -> bool:
        """Whether it is not trained further."""
        return self.diverged or bool(self.stopped or self.error)

    def put_in_force(self, fork: Branchable, decision: int) -> None:
        """The intervention of a decision; one that would leave the bounds is a failure of this future alone."""
        try:
            fork.apply(self.sequence[decision])
        except UserError as error:
            self.error = describe_error(error)

    def see(self, fresh: Sequence[Telemetry]) -> None:
        """Take in steps.

        Not their losses but the validation loss tells a divergence: a batch without labels has
        none.
        """
        self.telemetry += fresh
        self.steps += len(fresh)
        self.new_steps += len(fresh)

    def looked(self, step: int, loss: float, cap: float) -> None:
        """Take in a validation loss. One that is not below the cap is a divergence."""
        self.looks = (*self.looks, (step, loss))
        self.diverged = self.diverged or not loss < cap

    def future(self) -> Future:
        """Where it has come to."""
        return Future(
            done=self.sequence,
            steps=self.steps,
            state=self.state,
            telemetry=tuple(self.telemetry),
            looks=self.looks,
            flops=self.flops,
            diverged=self.diverged,
            stopped=self.stopped,
            error=self.error,
        )


def over(future: Future) -> bool:
    """Whether it can't be gone on with."""
    return bool(future.steps and future.state is None) or bool(future.error)
