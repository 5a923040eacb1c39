"""Accept what is better at once, by validation loss and by training losses on the same batches.

    accept  ⇔  Δv < 0,  Δt < 0  and  (Δv + Δt) / 2 < −margin

Δv is Δ ln validation loss where the branch ends, Δt the mean Δ ln training loss of its steps: two
measures of one thing, each of few tokens. Where the batches were others, as they are where some
were skipped, Δt is left out.

A few steps show what goes wrong now, not how a run ends: late in a run every lower learning rate
looks better. The rule is for questions whose answer shows at once, such as whether a rate that is
still warming up is too high already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
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
        measured = {"validation loss": branch.delta}
        if branch.paired is not None:
            measured["training loss"] = branch.paired.mean
        if max(measured.values()) < 0 and fmean(measured.values()) < -self.margin:
            return ""
        return f"it is not better by {self.margin:g}: {', '.join(f'{name} {change:+.4f}' for name, change in measured.items())}"

    def rank(self, branch: Branch, /) -> float:
        """See `AcceptRule`."""
        return branch.delta
