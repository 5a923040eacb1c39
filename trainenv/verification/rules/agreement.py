"""Accept where reality agrees with the draft, and then believe the draft's long view.

    accept  ⇔  low ≤ measured Δ ln validation loss ≤ high  (the draft's own 90 % interval at the
    branch's end)
               and it harms nothing:  Δ < harm  and  mean Δ ln training loss on the same batches <
                   harm, with 95 % confidence
               and, where it lowers the learning rate:  Δ ≤ −cut

This is speculative decoding's test in spirit: the target (a short real rollout) is not asked for
its own choice, it is asked whether the draft can be trusted here. What a few steps measure cannot
rank futures by how they end; the draft was trained to.

A lower learning rate is better at first in almost every run, and worse at the end of most: that a
cut measures a little better says nothing. More is asked of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from trainenv.types import Branch, Measure, UserError

_LOWER = 1 - 1e-9  # factor on the learning rate below which a sequence lowers it
_Z95 = 1.6448536269514722  # one-sided


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Accept what does as it was drafted to and harms nothing.

    Args:
        harm: Δ ln loss from which on a branch does harm, nats.
        surprise: whether a branch that is better than its interval counts as agreeing.
        cut: Δ ln validation loss by which a branch must be better whose learning rate is lower in
            the end, nats.

    Raises:
        UserError: the harm or the cut is not a finite number of at least 0.
    """

    harm: float = 0.02
    surprise: bool = True
    cut: float = 0.0
    measure: ClassVar[Measure] = "horizon"

    def __post_init__(self) -> None:
        if not 0 <= self.harm < math.inf:
            raise UserError(f"harm must be a finite number of at least 0, found {self.harm!r}")
        if not 0 <= self.cut < math.inf:
            raise UserError(f"cut must be a finite number of at least 0, found {self.cut!r}")

    def objection(self, branch: Branch, control: Branch, /) -> str:
        """See `AcceptRule`."""
        if not math.isfinite(branch.delta):
            return "its loss against doing nothing was not measured"
        if branch.expected is not None:
            low, _, high = branch.expected
            if branch.delta > high or (branch.delta < low and not self.surprise):
                return (
                    f"it measured {branch.delta:+.4f}, the draft had said {low:+.4f} to {high:+.4f}"
                )
        if branch.delta >= self.harm:
            return f"it harms: validation loss {branch.delta:+.4f} against doing nothing"
        lowers = math.prod(one.lr_scale for one in branch.interventions) < _LOWER
        if self.cut and lowers and branch.delta > -self.cut:
            return f"a lower rate is better at first anyway: {self.cut:g} is asked of it, it measured {branch.delta:+.4f}"
        pair = branch.paired
        if (
            pair is not None
            and math.isfinite(pair.error)
            and pair.mean - _Z95 * pair.error >= self.harm
        ):
            return (
                f"it harms: training loss {pair.mean:+.4f} ± {pair.error:.4f} against doing nothing"
            )
        return ""

    def rank(self, branch: Branch, /) -> float:
        """See `AcceptRule`."""
        return branch.score if math.isfinite(branch.score) else branch.delta
