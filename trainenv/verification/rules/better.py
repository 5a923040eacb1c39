"""`better`: accept a branch whose validation loss and training losses are lower at once.

    accept  ⇔  Δv < 0,  Δt < 0  and  (Δv + Δt) / 2 < −margin

Δv is Δ ln validation loss at the end of the branch, Δt the mean Δ ln training loss of its steps:
two measures of the same quantity, each on few tokens. Δt is left out if the batches differ, for
example because some were skipped.

A few steps show what goes wrong now, not the final loss of a run: late in a run every lower
learning rate looks better. The rule is for questions that a few steps can answer, such as: is the
learning rate already too high during warm-up?
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from trainenv.types import Branch, Measure, UserError


@dataclass(frozen=True, kw_only=True)
class Better:
    """Accept a branch that measured a lower loss than doing nothing.

    Args:
        margin: Fall of ln loss that is required in the mean of Δv and Δt, nats.

    Raises:
        UserError: The margin is not a finite number of at least 0.
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
        measured = {"validation loss": branch.delta}
        if branch.paired is not None:
            measured["training loss"] = branch.paired.mean
        if max(measured.values()) < 0 and fmean(measured.values()) < -self.margin:
            return ""
        changes = ", ".join(f"{name} {change:+.4f}" for name, change in measured.items())
        return f"it is not better by {self.margin:g}: {changes}"

    def rank(self, branch: Branch, /) -> float:
        """See `AcceptRule`."""
        return branch.delta
