"""`agreement`: accept a branch whose measured loss agrees with its forecast.

Δ is the measured Δ ln validation loss of the branch against doing nothing. A branch is accepted if
all of these hold:

    forecast    low ≤ Δ ≤ high, the 90 % forecast interval at the end of the branch
    no harm     Δ < harm, and the mean Δ ln training loss on the same batches is not shown to be
                ≥ harm (one-sided, 95 % confidence)
    cuts        Δ ≤ −cut, if the branch lowers the learning rate

This is the test of speculative decoding in spirit: the target (a few real steps) does not choose,
it checks whether the forecast can be trusted here. The loss after a few steps cannot rank futures
by their final loss; the world model was trained for that. Accepted branches are therefore ranked by
the score of the plan.

A lower learning rate gives a lower loss at first in almost every run, and a higher one at the end
of most. A small early gain is hence no evidence for a cut; `cut` asks for a larger one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from trainenv.types import Branch, Measure, UserError

_LOWER = 1 - 1e-9  # factor on the learning rate below which a sequence counts as a cut
_Z95 = 1.6448536269514722  # 95 % quantile of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Accept a branch that agrees with its forecast and does no harm.

    Args:
        harm: Smallest Δ ln loss that counts as harm, nats.
        surprise: True to accept a branch whose loss is below its forecast interval.
        cut: Fall of ln validation loss against doing nothing that is required of a branch with a
            lower learning rate at its end, nats.

    Raises:
        UserError: `harm` or `cut` is not a finite number of at least 0.
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
            return (
                f"a lower rate is better at first anyway: {self.cut:g} is asked of it, "
                f"it measured {branch.delta:+.4f}"
            )
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
        if math.isfinite(branch.score):
            return branch.score
        return branch.delta
