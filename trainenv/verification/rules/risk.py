"""The rule of the specification: low forecast risk, and a short rollout that is calmer or better than doing nothing.

    accept  ⇔  P(it diverges within N steps) < bound  and  (volatility < the control's  or
    validation loss < the control's)

Of those accepted the one with the lowest validation loss is taken. It shares the bias of short
looks: a lower learning rate looks better than it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainenv.types import Branch, Measure, UserError


@dataclass(frozen=True, kw_only=True)
class Risk:
    """Accept what is of low risk and does some good at once.

    Args:
        bound: on the forecast probability of diverging; a branch without a forecast has no such
            bound.

    Raises:
        UserError: the bound is no probability.
    """

    bound: float = 0.2
    measure: ClassVar[Measure] = "horizon"

    def __post_init__(self) -> None:
        if not 0 < self.bound <= 1:
            raise UserError(f"bound must be a probability above 0, found {self.bound!r}")

    def objection(self, branch: Branch, control: Branch, /) -> str:
        """See `AcceptRule`."""
        if branch.forecast is not None and not branch.forecast.divergence < self.bound:
            return f"its forecast risk of diverging is {branch.forecast.divergence:.2f}, not below {self.bound:g}"
        calmer = control.outcome.diverged or branch.outcome.volatility < control.outcome.volatility
        if calmer or branch.delta < 0:
            return ""
        return "it neither lowers volatility nor improves the loss"

    def rank(self, branch: Branch, /) -> float:
        """See `AcceptRule`."""
        return branch.delta
