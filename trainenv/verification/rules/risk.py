"""`risk`: accept a branch of low forecast risk that is calmer or better than doing nothing.

    accept  ⇔  P(the branch diverges within N steps) < bound
               and (volatility < that of the control  or  validation loss < that of the control)

The accepted branch with the lowest validation loss becomes the run. The rule shares the bias of
short branches: a lower learning rate looks better than it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainenv.types import Branch, Measure, UserError


@dataclass(frozen=True, kw_only=True)
class Risk:
    """Accept a branch of low risk that lowers volatility or loss at once.

    Args:
        bound: Upper bound on the forecast probability of diverging, above 0 and at most 1. A branch
            without a forecast is not bounded.

    Raises:
        UserError: The bound is no probability.
    """

    bound: float = 0.2
    measure: ClassVar[Measure] = "horizon"

    def __post_init__(self) -> None:
        if not 0 < self.bound <= 1:
            raise UserError(f"bound must be a probability above 0, found {self.bound!r}")

    def objection(self, branch: Branch, control: Branch, /) -> str:
        """See `AcceptRule`."""
        if branch.forecast is not None and not branch.forecast.divergence < self.bound:
            return (
                f"its forecast risk of diverging is {branch.forecast.divergence:.2f}, "
                f"not below {self.bound:g}"
            )
        calmer = control.outcome.diverged or branch.outcome.volatility < control.outcome.volatility
        if calmer or branch.delta < 0:
            return ""
        return "it neither lowers volatility nor improves the loss"

    def rank(self, branch: Branch, /) -> float:
        """See `AcceptRule`."""
        return branch.delta
