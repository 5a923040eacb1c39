"""AdaGC (Wang et al. 2025, arXiv:2502.11034): clip each tensor by a moving average of its own norm.

With g_i the gradient of tensor i and ‖g‖ the global L2 norm:

    first T steps      g_i ← g_i · min(1, λ_abs / ‖g‖)              (T = `warmup`)
                       γ_i ← min(γ_i, ‖g_i‖)                        γ_i = ∞ at first
    afterwards         g_i ← g_i · min(1, λ_rel γ_i / ‖g_i‖)
                       γ_i ← β γ_i + (1 − β) ‖g_i‖                  ‖g_i‖ after clipping

Deviations from the paper:
- *Zero and absent gradients*: a tensor without a gradient, or with a gradient of 0, leaves its γ as
  it was, and one that has no γ yet is not clipped. With γ = 0, as in the paper, an embedding or an
  expert that was unused in the warm-up would never be trained.
- *Non-finite steps*: with a norm of inf or NaN the whole gradient becomes 0 (the optimizer then
  moves by momentum and decay only), and γ and the warm-up stay as they were.
- *State on the device*: nothing is read on the host, and the state can be saved. If the number of
  tensors changes, because some were unfrozen, γ and the warm-up start anew.

As published, γ is fed with clipped norms, so a tensor's norm can rise by at most
1 + (1 − β)(λ_rel − 1) a step: by 0.1 % at the defaults.
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
    gradients_of,
    is_finite,
    norm_of_norms,
    norms_by_place,
    scale_each_,
    scale_or_zero_,
)
from trainenv.tools.checks import count, number
from trainenv.types import ClipReport


@dataclass(frozen=True, kw_only=True)
class AdaGC:
    """Adaptive clipping of each tensor.

    The score is the largest ‖g_i‖ ÷ γ_i, 0 in the warm-up. The threshold is the global norm of a
    gradient at the bound of each tensor.

    Args:
        relative: Largest norm of a tensor as a multiple of its moving average, λ_rel; above 0.
        absolute: Largest global norm in the warm-up, λ_abs; above 0.
        beta: Decay of the moving averages a step, between 0 and 1.
        warmup: Steps with a finite norm before tensors are clipped one by one; at least 1.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    needs_workers: ClassVar[bool] = False
    per_tensor: ClassVar[bool] = True

    relative: float = 1.05
    absolute: float = 1.0
    beta: float = 0.98
    warmup: int = 100

    def __post_init__(self) -> None:
        number("relative", self.relative, above=0)
        number("absolute", self.absolute, above=0)
        number("beta", self.beta, above=0, below=1)
        object.__setattr__(self, "warmup", count("warmup", self.warmup, least=1))

    def init(self, parameters: Sequence[Tensor], /) -> dict[str, Tensor]:
        """Return a fresh state.

        It has the moving average `usual` of each tensor's norm (float32, empty until the first
        step, 0 where a tensor had no gradient yet) and the number of finite norms `seen` (int64,
        0-d).
        """
        device = device_of(parameters)
        return {
            "usual": torch.zeros(0, dtype=torch.float32, device=device),
            "seen": torch.zeros((), dtype=torch.int64, device=device),
        }

    def clip(
        self,
        parameters: Sequence[Tensor],
        state: dict[str, Tensor],
        /,
        *,
        workers: Sequence[Sequence[Tensor]] | None = None,
        optimizer: Optimizer | None = None,
    ) -> ClipReport:
        """Scale the gradients to this step's bounds, then move the averages."""
        if state["usual"].numel() != len(parameters):
            state["usual"] = state["usual"].new_zeros(len(parameters))
            state["seen"].zero_()
        usual = state["usual"]  # [tensors]
        norms = norms_by_place(parameters)  # [tensors]
        norm = norm_of_norms(norms)
        finite = is_finite(norm)
        warm = state["seen"] < self.warmup
        known = usual > 0
        bound = torch.where(known, self.relative * usual, math.inf)
        ratio = torch.where(
            warm, self.absolute / norm.clamp(min=TINY), bound / norms.clamp(min=TINY)
        )
        coefficients = torch.where(finite, ratio.clamp(max=1.0), 0.0).nan_to_num_(0.0)
        scale_or_zero_(gradients_of(parameters), finite.float())
        scale_each_(parameters, coefficients)
        clipped = (norms * coefficients).nan_to_num_(0.0, posinf=0.0)
        fed = torch.where(
            warm, torch.minimum(usual, clipped), torch.lerp(clipped, usual, self.beta)
        )
        fed = torch.where(known, fed, clipped)
        score = torch.where(known & ~warm, norms / usual.clamp(min=TINY), 0.0).amax()
        usual.copy_(torch.where(finite & (clipped > 0), fed, usual))
        state["seen"].add_(finite)
        return ClipReport(
            norm,
            norm_of_norms(clipped),
            torch.where(warm, self.absolute, norm_of_norms(bound)),
            torch.where(finite, score, norm),
            tensor_norms=norms,
        )
