"""ARC, adaptive robust clipping (Allouah et al. 2025, arXiv:2405.14432).

The largest of n gradients are scaled down to the norm of the next largest.

With n worker gradients x_i, of which f may be wrong:

    k = ⌊2 (f/n) (n − f)⌋,   C = the (k+1)-th largest of ‖x_1‖ … ‖x_n‖
    the k largest:  x_i ← x_i · min(1, C / ‖x_i‖)
    gradient = mean of the x_i

f is the share `suspected` of n, rounded half up, and at least 1 if the share is above 0: one of 4
micro-batches can be suspected. Workers are the micro-batches of an accumulated step.

Deviations from the paper:
- *Steps as workers*: if a step has a single gradient, the workers are the last `window` steps with
  a finite norm, this one included, by their norms before clipping. This step is scaled if it is
  among the k largest. Norms not yet known count as infinite, so nothing is clipped until n − k are
  known (27 of 32 at the defaults).
- *Non-finite workers* are certain to be wrong: they contribute 0 to the mean (still over n), and C
  is the (k+1)-th largest of the finite norms, or the smallest of them if there are at most k. If no
  norm is finite, or the norm of a step that is a worker is not, the whole gradient becomes 0 and
  the history stays as it was (the optimizer then moves by momentum and decay only).
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
    device_of,
    global_norm,
    global_norms,
    gradients_of,
    is_finite,
    mean_of,
    norm_of_norms,
    scale_or_zero_,
    tensor_norms,
)
from trainenv.tools.checks import count, number
from trainenv.types import ClipReport


@dataclass(frozen=True, kw_only=True)
class ARC:
    """Adaptive robust clipping.

    The threshold is C. The score is norm ÷ C; with workers it is the largest finite norm ÷ C.

    Args:
        suspected: Share f/n of workers that may be wrong, from 0 (never clips) to below 0.5.
        window: Number of steps that replace workers if a step has a single gradient; at least 2.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    needs_workers: ClassVar[bool] = True

    suspected: float = 0.1
    window: int = 32

    def __post_init__(self) -> None:
        number("suspected", self.suspected, least=0, below=0.5)
        object.__setattr__(self, "window", count("window", self.window, least=2))

    def init(self, parameters: Sequence[Tensor], /) -> dict[str, Tensor]:
        """Return a fresh state: the `history` of norms, [window], oldest first, all inf."""
        device = device_of(parameters)
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
        """Scale the workers in place and set `p.grad` to their mean, or scale the gradient."""
        if workers is not None:
            return self._clip_workers(parameters, workers)
        gradients = gradients_of(parameters)
        norms = tensor_norms(gradients)
        norm = norm_of_norms(norms)
        finite = is_finite(norm)
        history = state["history"]  # [window]
        history.copy_(torch.where(finite, torch.cat((history[1:], norm[None])), history))
        threshold = nth_largest(history, cut_count(self.window, self.suspected))
        coefficient = torch.where(finite, shrink(norm, threshold), 0.0)
        scale_or_zero_(gradients, coefficient)
        return ClipReport(
            norm,
            (norm * coefficient).nan_to_num_(0.0),
            threshold,
            norm / threshold.clamp(min=TINY),
            tensor_norms=norms,
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
    """Return the number of workers to scale down: k = ⌊2 (f/n) (n − f)⌋.

    Args:
        n: Number of workers.
        suspected: Share f/n of workers that may be wrong.
    """
    if suspected == 0:
        return 0
    f = max(1, math.floor(suspected * n + 0.5))
    return 2 * f * (n - f) // n


def nth_largest(norms: Tensor, rank: int) -> Tensor:
    """Return the value with `rank` larger ones, 0-d.

    It uses `topk`, because torch refuses `kthvalue` in its deterministic mode.
    """
    return torch.topk(norms, rank + 1).values[rank]


def shrink(norms: Tensor, threshold: Tensor) -> Tensor:
    """Return min(1, C / ‖x‖) for each norm; it is 1 for all but the k largest."""
    return (threshold / norms.clamp(min=TINY)).clamp_(max=1.0)
