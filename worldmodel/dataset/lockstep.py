"""Runs trained side by side: one by itself, or many folded into one where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from trainenv.types import Telemetry
from trainenv.worldmodel.dataset.contract import Run


class Lockstep(Protocol):
    """Runs at the same step. `trainenv.rollouts.folded.Folded` is one; each of `runs` may be steered, snapshot and restored by itself."""

    @property
    def runs(self) -> Sequence[Run]: ...

    def advance(self, steps: int, among: Sequence[int]) -> list[list[Telemetry]]:
        """Train the runs with the numbers `among`; what each step of each measured."""
        ...

    def evaluate(self, among: Sequence[int]) -> list[float]:
        """Validation loss of the runs with the numbers `among`, nats per token."""
        ...


Fold = Callable[[Sequence[Run]], Lockstep]
"""Forks of one run → the same, side by side. They belong to it from then on."""


class Alone:
    """One run, one step after another."""

    def __init__(self, run: Run) -> None:
        self.runs = (run,)

    def advance(self, steps: int, among: Sequence[int] = (0,)) -> list[list[Telemetry]]:
        return [self.runs[number].advance(steps) for number in among]

    def evaluate(self, among: Sequence[int] = (0,)) -> list[float]:
        return [self.runs[number].evaluate() for number in among]
