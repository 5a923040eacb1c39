"""Early stopping of branches that clearly lose: a sequential test on the training losses.

A branch and the control see the same batches. Hence d_t = ln(loss of the branch ÷ loss of the
control) on step t varies little except by the effect of the branch. At each of a few evaluation
points the branch is stopped if even its lower confidence bound is a loss:

    mean(d) − t·(standard error) > loss

t is the quantile of Student's t with n − 1 degrees of freedom at 1 − α / 4, for 4 evaluation points
(Bonferroni). After a few steps the standard error is itself uncertain: with the quantile of the
normal distribution, noise alone would stop five times as many branches as α allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from trainenv.types import Paired, Telemetry, UserError

_EVALUATION_POINTS = 4


@dataclass(frozen=True, kw_only=True)
class Losing:
    """A sequential test that stops branches which clearly lose.

    Args:
        alpha: Chance of stopping a branch that does not lose, over all evaluation points.
        loss: Smallest Δ ln training loss that counts as losing, nats.
        least: Steps before the first evaluation point.

    Raises:
        UserError: A number is out of range.
    """

    alpha: float = 0.01
    loss: float = 0.02
    least: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or not 0 <= self.loss < math.inf or self.least < 2:
            raise UserError(
                f"alpha must be in (0, 1), loss finite and at least 0, least at least 2, "
                f"found {self!r}"
            )

    def __call__(self, branch: Sequence[Telemetry], control: Sequence[Telemetry], /) -> str:
        """Return the reason to stop the branch, or an empty string to continue."""
        pair = paired([t.loss for t in branch], [t.loss for t in control])
        if pair is None or pair.steps < self.least:
            return ""
        t = float(stdtrit(pair.steps - 1, 1 - self.alpha / _EVALUATION_POINTS))
        if pair.mean - t * pair.error <= self.loss:
            return ""
        return (
            f"stopped after {pair.steps} steps: it clearly loses "
            f"({pair.mean:+.4f} ± {pair.error:.4f} against doing nothing)"
        )


def paired(branch: Sequence[float], control: Sequence[float]) -> Paired | None:
    """Return the statistics of ln(branch ÷ control) over the steps that both have.

    Steps at which either loss is not positive and finite are left out; None if no step is left.

    Args:
        branch: Training loss of each step of a branch, nats per token.
        control: Training loss of each step of the control, on the same batches.
    """
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
