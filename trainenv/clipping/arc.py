"""ARC, adaptive robust clipping (Allouah et al.

2025, arXiv:2405.14432): cut the largest of n gradients down to the next.

With n worker gradients x_i of which f are suspected:

    k = ⌊2 (f/n) (n − f)⌋,   C = the (k+1)-th largest of ‖x_1‖ … ‖x_n‖
    the k largest:  x_i ← x_i · min(1, C / ‖x_i‖)
    gradient = mean of the x_i

f is the share `suspected` of n, rounded half up, and at least 1 where the share is above 0: one of
4 micro-batches can be suspected. Workers are the micro-batches of an accumulated step.

Deviations from the paper:
- *Steps as workers*: where a step has a single gradient, the workers are the last `window` steps with a finite norm, this
  one included, by their norms before clipping, and this step is scaled if it is among the k
  largest. Norms not known yet count as infinite, so nothing is clipped until n − k are known (27 of
  32 at the defaults).
- *Non-finite workers* are suspects known for sure: they contribute 0 to the mean (still over n), and C is the (k+1)-th
  largest of the finite norms, or the smallest of them where there are no more than k. With none, or
  with a non-finite norm where steps are workers, the whole gradient becomes 0 and the history stays
  as it was (the optimizer then moves by momentum and decay only).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainenv.clipping.norms import (
    TINY,
    global_norm,
    global_norms,
    gradients_of,
    is_finite,
    mean_of,
    scale_or_zero_,
)
from trainenv.tools.checks import count, number
from trainenv.types import ClipReport


@dataclass(frozen=True, kw_only=True)
class ARC:
    """Adaptive robust clipping.

    The threshold is C; the score is norm ÷ C, with workers the largest finite norm ÷ C.

    Args:
        suspected: share f/n of workers that may be wrong, from 0 (never clips) to below 0.5.
        window: how many steps' norms stand in for workers where a step has a single gradient; at
            least 2.

    Raises:
        UserError: a hyperparameter is out of range.
    """

    needs_workers: ClassVar[bool] = True

    suspected: float = 0.1
    window: int = 32

    def __post_init__(self) -> None:
        number("suspected", self.suspected, least=0, below=0.5)
        object.__setattr__(self, "window", count("window", self.window, least=2))

    def init(self, parameters: Sequence[Tensor], /) -> dict[str, Tensor]:
        """`history`: the norms of the last `window` finite steps, oldest first, inf where there was none yet."""
        device = parameters[0].device if parameters else None
        return {"history": torch.full((self.window,), math.inf, dtype=torch.float32, device=device)}

    def clip(
        self,
        parameters: Sequence[Tensor],
        state: dict[str, Tensor],
        /,
        *,
        workers: Sequence[Sequence[Tensor]] | None = None,
        optimizer: Optimizer | None = None,
    ) -> ClipReport:
        """Scale the workers in place and fill `p.grad` with their mean; without workers, scale the gradient."""
        if workers is not None:
            return self._clip_workers(parameters, workers)
        gradients = gradients_of(parameters)
        norm = global_norm(gradients)
        finite = is_finite(norm)
        history = state["history"]  # [window]
        history.copy_(torch.where(finite, torch.cat((history[1:], norm[None])), history))
        threshold = nth_largest(history, cut_count(self.window, self.suspected))
        coefficient = torch.where(finite, shrink(norm, threshold), 0.0)
        scale_or_zero_(gradients, coefficient)
        return ClipReport(
            norm, (norm * coefficient).nan_to_num_(0.0), threshold, norm / threshold.clamp(min=TINY)
        )

    def _clip_workers(
        self, parameters: Sequence[Tensor], workers: Sequence[Sequence[Tensor]]
    ) -> ClipReport:
        norm = global_norm(mean_of(workers))
        norms = global_norms(workers)  # [n]
        finite = is_finite(norms)  # [n]
        smallest = norms.masked_fill(~finite, math.inf).amin()
        threshold = nth_largest(
            torch.where(finite, norms, smallest), cut_count(len(workers), self.suspected)
        )
        coefficients = torch.where(finite, shrink(norms, threshold), 0.0)  # [n]
        for worker, coefficient in zip(workers, coefficients.unbind(), strict=True):
            scale_or_zero_(list(worker), coefficient)
        mean = mean_of(workers)
        for parameter, gradient in zip(parameters, mean, strict=True):
            parameter.grad = gradient
        score = norms.masked_fill(~finite, 0.0).amax() / threshold.clamp(min=TINY)
        return ClipReport(norm, global_norm(mean), threshold, score)


def cut_count(n: int, suspected: float) -> int:
    """How many of n workers may be cut, for a share of suspected ones: k = ⌊2 (f/n) (n − f)⌋."""
    f = max(1, math.floor(suspected * n + 0.5)) if suspected > 0 else 0
    return 2 * f * (n - f) // n


def nth_largest(norms: Tensor, rank: int) -> Tensor:
    """The value with `rank` larger ones, 0-d.

    `topk`, because `kthvalue` is refused where torch must be deterministic.
    """
    return torch.topk(norms, rank + 1).values[rank]


def shrink(norms: Tensor, threshold: Tensor) -> Tensor:
    """min(1, C / ‖x‖), by element; those not among the k largest have ‖x‖ ≤ C, and get 1."""
    return (threshold / norms.clamp(min=TINY)).clamp_(max=1.0)
