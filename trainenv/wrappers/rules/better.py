"""Accept what is better at once, by validation loss and by training losses on the same batches.

    accept  ⇔  Δv < 0,  Δt < 0  and  (Δv + Δt) / 2 < −margin

Δv is Δ ln validation loss where the branch ends, Δt the mean Δ ln training loss of its steps: two measures of one thing, each of
few tokens.

A few steps show what goes wrong now, not how a run ends: late in a run every lower learning rate looks better. The rule is for
questions whose answer shows at once, such as whether a rate that is still warming up is too high already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from trainenv.types import Branch, Measure, UserError


@dataclass(frozen=True, kw_only=True)
class Better:
    """Accept what measured better than doing nothing.

    Args:
        margin: by which a branch must be better, nats, in the mean of both.

    Raises:
        UserError: the margin is not a finite number of at least 0.
    """

    margin: float = 0.005
    measure: ClassVar[Measure] = "horizon"

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise UserError(f"margin must be a finite number of at least 0, found {self.margin!r}")

    def objection(self, branch: Branch, control: Branch, /) -> str:
        """See `AcceptRule`."""
        if not math.isfinite(branch.delta):
            return "its loss against doing nothing was not measured"
        training = branch.delta if branch.paired is None else branch.paired.mean
        if branch.delta < 0 and training < 0 and (branch.delta + training) / 2 < -self.margin:
            return ""
        return f"it is not better by {self.margin:g}: validation loss {branch.delta:+.4f}, training loss {training:+.4f}"

    def rank(self, branch: Branch, /) -> float:
        """See `AcceptRule`."""
        return branch.delta
