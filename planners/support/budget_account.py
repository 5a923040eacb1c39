"""The account of a plan: its spending against its budget, and its faults."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from trainenv.types import Budget, Cost, UserError

T = TypeVar("T")


class Account:
    """The costs of one call of a planner.

    Args:
        budget: Limits of the plan.
        clock: Clock that returns rising seconds.

    Attributes:
        spent: Cost so far, without the seconds.
        faults: Faults of the model or the executor. After a fault nothing more is called.
        exhausted: True once something was refused for lack of budget.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float]) -> None:
        self.budget = budget
        self.spent = Cost()
        self.faults = list[str]()
        self.exhausted = False
        self._clock = clock
        self._start = clock()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def over(self) -> bool:
        """True if the planner must stop: a fault happened, or the time is up."""
        if self.budget.seconds is not None and self.seconds >= self.budget.seconds:
            self.exhausted = True
            return True
        return bool(self.faults)

    @property
    def futures_left(self) -> float:
        """Futures that the model may still evaluate; inf without a limit."""
        if self.budget.futures is None:
            return math.inf
        return self.budget.futures - self.spent.futures - self.spent.paths

    @property
    def steps_left(self) -> float:
        """Real steps that may still be taken; inf without a limit."""
        if self.budget.steps is None:
            return math.inf
        return self.budget.steps - self.spent.steps

    def spend(
        self, *, futures: int = 0, steps: int = 0, flops: float = 0.0, paths: int = 0
    ) -> None:
        """Add a cost to the account."""
        self.spent += Cost(futures=futures, steps=steps, flops=flops, paths=paths)

    def fail(self, fault: str) -> None:
        """Record a fault; nothing more is called."""
        self.faults.append(fault)

    def covers(self, cost: Cost) -> bool:
        """Tell if the rest of the budget covers the real steps and FLOPs of a cost."""
        in_flops = self.budget.flops is None or self.spent.flops + cost.flops <= self.budget.flops
        return in_flops and cost.steps <= self.steps_left

    def affordable(self, listed: list[T], price: Callable[[Sequence[T]], Cost]) -> list[T]:
        """Return the longest prefix of a list that the budget covers; note if it is not all.

        The prefix is found by bisection, since the price rises with each element.
        """
        if self.budget.flops is None and self.budget.steps is None:
            return listed
        if self.covers(price(listed)):
            return listed
        covered = 0
        too_much = len(listed)
        while too_much - covered > 1:
            middle = (covered + too_much) // 2
            if self.covers(price(listed[:middle])):
                covered = middle
            else:
                too_much = middle
        self.exhausted = self.exhausted or covered < len(listed)
        return listed[:covered]


def needed(planner: str, what: str, found: T | None) -> T:
    """Return a part of the problem that a planner cannot work without.

    Raises:
        UserError: The problem does not have it.
    """
    if found is None:
        raise UserError(f"{planner} needs {what}, found none in the problem; hand one in")
    return found
