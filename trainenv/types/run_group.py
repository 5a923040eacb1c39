"""`RunGroup`: the protocol of runs that are trained side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from trainenv.types.run import Run, Snapshot
from trainenv.types.step import Intervention, Telemetry


class Branchable(Protocol):
    """Changes to one run of a group between two stretches of training."""

    lr_scale: float

    def apply(self, intervention: Intervention, /) -> None:
        """Put an intervention in force from the next step on, whole or not at all."""
        ...


R_co = TypeVar("R_co", bound=Branchable, covariant=True)


class RunGroup(Protocol[R_co]):
    """Runs at the same step, trained side by side: in turn, folded into one, or in other processes.

    `trainenv.rollouts.InTurn`, `trainenv.rollouts.Folded` and `trainenv.rollouts.RemoteGroup` are
    the three. Runs have numbers, their places in `runs`.
    """

    @property
    def runs(self) -> Sequence[R_co]:
        """The runs, in the order of their numbers."""
        ...

    def advance(self, steps: int, among: Sequence[int], /) -> list[list[Telemetry]]:
        """Train the runs with the numbers `among` and return what each step of each measured."""
        ...

    def evaluate(self, among: Sequence[int], /) -> list[float]:
        """Return the validation losses of the runs with the numbers `among`, in nats per token."""
        ...

    def snapshot(self, number: int, /) -> Snapshot:
        """Return the state of one run, as a single run restores it."""
        ...


Fold = Callable[[Sequence[Run]], RunGroup[Run]]
"""Forks of one run → the same, side by side. They belong to the group from then on."""
