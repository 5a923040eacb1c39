"""Runs that are trained in turn, and how a group of runs is asked so that a failure stays with one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from trainenv.tools.error_text import describe_error
from trainenv.types import Branchable, Run, RunGroup, Snapshot, Telemetry

if TYPE_CHECKING:
    from trainenv.rollouts.future import Growing

Answer = TypeVar("Answer")
R = TypeVar("R", bound=Run)


class InTurn(Generic[R]):
    """Forks trained one after the other, a stretch each."""

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
    branches: Sequence[Growing],
    numbers: list[int],
    ask: Callable[[list[int]], list[Answer]],
) -> list[tuple[int, Answer]]:
    """What `ask` answers for each number.

    Where runs are not folded into one, one that fails is marked, and the others go on.

    Raises:
        torch.OutOfMemoryError: the device has no room for a step beside so many forks; that is no
            fault of the one that asked.
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
