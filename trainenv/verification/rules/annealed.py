"""`annealed`: accept a branch whose loss is lower after a brief cool-down.

    accept  ⇔  Δ ln validation loss after the cool-down < −margin

The loss at a learning rate near 0 ranks futures where the raw loss misleads. It is the most
expensive rule: every branch, the control included, trains the cool-down, and those steps are
wasted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from trainenv.types import Branch, Measure, UserError


@dataclass(frozen=True, kw_only=True)
class Annealed:
    """Accept by the annealed-equivalent loss.

    Args:
        margin: Fall of ln loss against doing nothing that is required, nats. The default is about
            the effect of reordering the data.

    Raises:
        UserError: The margin is not a finite number of at least 0.
    """

    margin: float = 0.002
    measure: ClassVar[Measure] = "annealed"

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise UserError(f"margin must be a finite number of at least 0, found {self.margin!r}")

    def objection(self, branch: Branch, control: Branch, /) -> str:
        """See `AcceptRule`."""
        if not math.isfinite(branch.annealed_delta):
            return "its loss after the cool-down was not measured"
        if branch.annealed_delta >= -self.margin:
            return (
                f"after the cool-down it measured {branch.annealed_delta:+.4f}, "
                f"which is not below {-self.margin:g}"
            )
        return ""

    def rank(self, branch: Branch, /) -> float:
        """See `AcceptRule`."""
        return branch.annealed_delta
