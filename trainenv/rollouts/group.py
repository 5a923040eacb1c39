"""Runs that are trained in turn, and requests to a group that keep a failure to one branch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from trainenv.tools.error_text import describe_error
from trainenv.types import Branchable, Run, RunGroup, Snapshot, Telemetry

if TYPE_CHECKING:
    from trainenv.rollouts.future import LiveBranch

Answer = TypeVar("Answer")
R = TypeVar("R", bound=Run)


class InTurn(Generic[R]):
    """A group of runs that are trained one after the other, a stretch each."""

    def __init__(self, runs: Sequence[R]) -> None:
        self.runs = tuple(runs)

    def advance(self, steps: int, among: Sequence[int]) -> list[list[Telemetry]]:
        """See `RunGroup`."""
        return [self.runs[number].advance(steps) for number in among]

    def evaluate(self, among: Sequence[int]) -> list[float]:
        """See `RunGroup`."""
        return [self.runs[number].evaluate() for number in among]

    def snapshot(self, number: int) -> Snapshot:
        """See `RunGroup`."""
        return self.runs[number].snapshot()


def ask_each(
    together: RunGroup[Branchable],
    branches: Sequence[LiveBranch],
    numbers: list[int],
    ask: Callable[[list[int]], list[Answer]],
) -> list[tuple[int, Answer]]:
    """Return number and answer of each run that did not fail.

    A run that fails is marked in its branch, and the others continue; only in a folded group they
    fail together.

    Args:
        together: Group of runs.
        branches: Branch of each run.
        numbers: Numbers of the runs to ask.
        ask: Request to the group: numbers → one answer each.

    Raises:
        torch.OutOfMemoryError: The device has no room for a step in addition to the other forks.
            The branch that asked is not to blame.
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
            branches[number].error = describe_error(error)
    return answers
