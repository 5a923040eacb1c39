"""What a plan has spent, against what it may spend, and what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from trainenv.types import Budget, Cost, UserError

T = TypeVar("T")


class Account:
    """One call of a planner, as far as costs go.

    Args:
        budget: what may be spent.
        clock: seconds, rising.

    Attributes:
        spent: what was spent so far, but for the seconds.
        faults: what went wrong. After one of them nothing more is called.
        exhausted: something was refused for lack of budget.
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
        """Since the start."""
        return self._clock() - self._start

    @property
    def over(self) -> bool:
        """Whether nothing more can be looked at: something failed, or the time is up."""
        if self.budget.seconds is not None and self.seconds >= self.budget.seconds:
            self.exhausted = True
            return True
        return bool(self.faults)

    @property
    def futures_left(self) -> float:
        """Futures that a model may still look at; inf without a limit."""
        return math.inf if self.budget.futures is None else self.budget.futures - self.spent.futures

    @property
    def steps_left(self) -> float:
        """Real steps that may still be taken; inf without a limit."""
        return math.inf if self.budget.steps is None else self.budget.steps - self.spent.steps

    def spend(self, *, futures: int = 0, steps: int = 0, flops: float = 0.0) -> None:
        """Note what was spent."""
        self.spent += Cost(futures=futures, steps=steps, flops=flops)

    def fail(self, fault: str) -> None:
        """Note that something went wrong; nothing more is called."""
        self.faults.append(fault)

    def covers(self, cost: Cost) -> bool:
        """Whether the real steps and FLOPs of a cost are left."""
        in_flops = self.budget.flops is None or self.spent.flops + cost.flops <= self.budget.flops
        return in_flops and cost.steps <= self.steps_left

    def affordable(self, listed: list[T], price: Callable[[Sequence[T]], Cost]) -> list[T]:
        """The longest beginning of a list that can be paid for, by bisection: prices grow with each. Notes if it is not all."""
        if self.budget.flops is None and self.budget.steps is None:
            return listed
        if self.covers(price(listed)):
            return listed
        # what can be paid for, and what cannot
        low = 0
        high = len(listed)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.covers(price(listed[:middle])) else (low, middle)
        self.exhausted = self.exhausted or low < len(listed)
        return listed[:low]


def needed(planner: str, what: str, found: T | None) -> T:
    """What a planner cannot work without.

    Raises:
        UserError: the problem has none.
    """
    if found is None:
        raise UserError(f"{planner} needs {what}, found none in the problem; hand one in")
    return found


def told(error: Exception) -> str:
    """An error in words: its kind and what it says."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
