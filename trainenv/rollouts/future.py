"""Futures as they are trained: together or in turn, where each has come to, and one in the making. For `trainenv.rollouts.executor`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from trainenv.types import Intervention, Snapshot, Telemetry, UserError

if TYPE_CHECKING:
    from trainenv.run import TrainingRun
    from trainenv.training.ledger import Ledger

FOLDS_UP_TO = 48  # width; wider models gain nothing on a CPU (2.8 times at 16, 2.0 at 48, 1.0 at 64)

Answer = TypeVar("Answer")
Sequenced = tuple[Intervention, ...]


class Steered(Protocol):
    """What is steered of a fork; a `TrainingRun` is one."""

    lr_scale: float

    def apply(self, intervention: Intervention) -> None:
        """See `TrainingRun.apply`."""
        ...


class Together(Protocol):
    """Forks side by side. `trainenv.rollouts.folded.Folded` is one, and `trainenv.rollouts.remote.Beside`."""

    @property
    def runs(self) -> Sequence[Steered]:
        """In the order of their numbers."""
        ...

    def advance(self, steps: int, among: Sequence[int]) -> list[list[Telemetry]]:
        """Train those with the numbers `among`; what each step of each measured."""
        ...

    def evaluate(self, among: Sequence[int]) -> list[float]:
        """Validation losses, nats per token."""
        ...

    def snapshot(self, number: int) -> Snapshot:
        """The state of one, for runs by themselves."""
        ...


class InTurn:
    """Forks trained one after the other, a stretch each."""

    def __init__(self, runs: Sequence[TrainingRun]) -> None:
        self.runs = tuple(runs)

    def advance(self, steps: int, among: Sequence[int]) -> list[list[Telemetry]]:
        """See `Together`."""
        return [self.runs[number].advance(steps) for number in among]

    def evaluate(self, among: Sequence[int]) -> list[float]:
        """See `Together`."""
        return [self.runs[number].evaluate() for number in among]

    def snapshot(self, number: int) -> Snapshot:
        """See `Together`."""
        return self.runs[number].snapshot()


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a fork starts from: a state, whose data to come are reordered `draw` times; its steps are charged to `ledger`."""

    state: Snapshot
    draw: int
    ledger: Ledger


def forked(run: TrainingRun, start: Start) -> TrainingRun:
    """A fork of a run, as it starts."""
    fork = run.fork("verify")
    fork.restore(start.state)
    fork.ledger = start.ledger
    for _ in range(start.draw):
        fork.apply(Intervention(data_reorder=True))
    return fork


def side_by_side(run: TrainingRun, starts: Sequence[Start], *, fold: bool, workers: int) -> Together:
    """Forks of a run: folded where that is faster, else in worker processes if there are any, else in turn."""
    width = getattr(getattr(run.model, "config", None), "n_embd", math.inf)
    if fold and (run.device.type == "cuda" or width <= FOLDS_UP_TO):
        from trainenv.rollouts.folded import Folded

        with suppress(UserError):  # it says what can't be folded: these are trained one by one
            return Folded([forked(run, start) for start in starts])
    if workers and len(starts) > 1:
        from trainenv.rollouts.remote import beside

        if together := beside(run, starts, workers):
            return together
    return InTurn([forked(run, start) for start in starts])


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

    def put_in_force(self, fork: Steered, decision: int) -> None:
        """The intervention of a decision; one that would leave the bounds is a failure of this future alone."""
        try:
            fork.apply(self.sequence[decision])
        except UserError as error:
            self.error = told(error)

    def see(self, fresh: Sequence[Telemetry]) -> None:
        """Take in steps. Not their losses but the validation loss tells a divergence: a batch without labels has none."""
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


def asked(
    together: Together, branches: Sequence[Growing], numbers: list[int], ask: Callable[[list[int]], list[Answer]]
) -> list[tuple[int, Answer]]:
    """What `ask` answers for each number. Where runs are not folded into one, one that fails is marked, and the others go on.

    Raises:
        torch.OutOfMemoryError: the device has no room for a step beside so many forks; that is no fault of the one that asked.
    """
    if not isinstance(together, InTurn):
        answered = list(zip(numbers, ask(numbers)))
        failed: Mapping[int, str] = getattr(together, "failed", {})
        for number in failed.keys() & set(numbers):
            branches[number].error = failed[number]
        return [(number, answer) for number, answer in answered if number not in failed]
    answers = []
    for number in numbers:
        try:
            answers += [(number, answer) for answer in ask([number])]
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) and len(together.runs) > 1:
                raise
            branches[number].error = told(error)
    return answers


def told(error: Exception) -> str:
    """An error in words."""
    return f"{type(error).__name__}: {error}"[:300]


def over(future: Future) -> bool:
    """Whether it can't be gone on with."""
    return bool(future.steps and future.state is None) or bool(future.error)
