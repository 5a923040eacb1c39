"""Stop a branch early that clearly loses, by a sequential test on the training losses it shares batches with.

Differences d_t = ln(loss of the branch ÷ loss of doing nothing) on the same batch hardly vary but
for what the branch does. At each of a few looks the branch is stopped if even its lower confidence
bound is a loss:

    mean(d) − t·(standard error) > loss       Student's t with n − 1 degrees of freedom at 1 − α /
    4: 4 looks (Bonferroni)

After a few steps the standard error is itself uncertain: with the normal quantile, noise alone
would be stopped five times as often as α says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from trainenv.types import Paired, Telemetry, UserError

_LOOKS = 4


@dataclass(frozen=True, kw_only=True)
class Losing:
    """When a branch is stopped.

    Args:
        alpha: chance of stopping a branch that does not lose, over all looks.
        loss: Δ ln training loss that counts as losing, nats.
        least: steps before the first look.

    Raises:
        UserError: a number is out of range.
    """

    alpha: float = 0.01
    loss: float = 0.02
    least: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or not 0 <= self.loss < math.inf or self.least < 2:
            raise UserError(
                f"alpha must be in (0, 1), loss finite and at least 0, least at least 2, found {self!r}"
            )

    def __call__(self, branch: Sequence[Telemetry], control: Sequence[Telemetry], /) -> str:
        """Why the branch is stopped; empty: it goes on."""
        pair = paired([t.loss for t in branch], [t.loss for t in control])
        if pair is None or pair.steps < self.least:
            return ""
        t = float(stdtrit(pair.steps - 1, 1 - self.alpha / _LOOKS))
        if pair.mean - t * pair.error <= self.loss:
            return ""
        return f"stopped after {pair.steps} steps: it clearly loses ({pair.mean:+.4f} ± {pair.error:.4f} against doing nothing)"


def paired(branch: Sequence[float], control: Sequence[float]) -> Paired | None:
    """The statistics of ln(branch ÷ control) over the steps that both have; None where there is none that both measured."""
    pairs = [(b, c) for b, c in zip(branch, control) if 0 < b < math.inf and 0 < c < math.inf]
    if not pairs:
        return None
    differences = [math.log(b / c) for b, c in pairs]
    count = len(differences)
    mean = math.fsum(differences) / count
    if count < 2:
        return Paired(mean, math.inf, count)
    variance = math.fsum((d - mean) ** 2 for d in differences) / (count - 1)
    return Paired(mean, math.sqrt(variance / count), count)
