"""GradientStabilizer (Huang et al. 2025, arXiv:2502.17055): keep the direction, fix the norm.

Each tensor's gradient g_i keeps its direction; its norm becomes a statistic of its earlier norms:

    m_i ← γ₁ m_i + (1 − γ₁) ‖g_i‖,      v_i ← γ₂ v_i + (1 − γ₂) ‖g_i‖²
    g_i ← g_i / ‖g_i‖ · m̂_i / (√v̂_i + ε)        m̂, v̂: divided by 1 − γ^n after n steps

The new norm is at most about 1, and 1 for a tensor whose norm is steady. It is made for optimizers
whose update does not depend on the scale of the gradient (Adam and its relatives). With SGD it
changes what the learning rate means.

Deviations from the authors' code:
- *Non-finite steps*: with a norm of inf or NaN in any tensor, the whole gradient becomes 0 (the
  optimizer then moves by momentum and decay only). There such a gradient passes as it is.
- *State on the device*: nothing is read on the host, and the state can be saved. If the number of
  tensors changes, because some were unfrozen, the statistics start anew.

As in the authors' code, a tensor with a gradient of 0 is left alone, and its statistics too.
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
from trainenv.tools.checks import number
from trainenv.types import ClipReport


@dataclass(frozen=True, kw_only=True)
class GradientStabilizer:
    """Replacement of each tensor's gradient norm by m̂ ÷ √v̂.

    The score is the largest ‖g_i‖ ÷ √v̂_i, at most 1 ÷ √(1 − γ₂). The threshold is the global norm
    after the change.

    Args:
        gamma1: Decay of the mean norm a step, γ₁, from 0 to below 1.
        gamma2: Decay of the mean squared norm a step, γ₂, from 0 to below 1.
        eps: Number added to √v̂ (L2 norm), ε.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    needs_workers: ClassVar[bool] = False
    per_tensor: ClassVar[bool] = True

    gamma1: float = 0.6
    gamma2: float = 0.999
    eps: float = 1e-12

    def __post_init__(self) -> None:
        number("gamma1", self.gamma1, least=0, below=1)
        number("gamma2", self.gamma2, least=0, below=1)
        number("eps", self.eps, above=0)

    def init(self, parameters: Sequence[Tensor], /) -> dict[str, Tensor]:
        """Return a fresh state, three tensors that are empty until the first step.

        It has `mean` and `square` (float32 [tensors]), the moving averages of norm and squared
        norm, and `seen` (int64 [tensors]), the number of norms in them.
        """
        device = device_of(parameters)
        empty = torch.zeros(0, dtype=torch.float32, device=device)
        return {"mean": empty, "square": empty.clone(), "seen": empty.long()}

    def clip(
        self,
        parameters: Sequence[Tensor],
        state: dict[str, Tensor],
        /,
        *,
        workers: Sequence[Sequence[Tensor]] | None = None,
        optimizer: Optimizer | None = None,
    ) -> ClipReport:
        """Update the statistics, then give each gradient its new norm."""
        if state["mean"].numel() != len(parameters):
            state |= {name: part.new_zeros(len(parameters)) for name, part in state.items()}
        mean = state["mean"]
        square = state["square"]
        seen = state["seen"]
        norms = norms_by_place(parameters)  # [tensors]
        norm = norm_of_norms(norms)
        finite = is_finite(norm)
        used = finite & (norms > 0)
        safe = torch.where(used, norms, 1.0)  # the 1 is a placeholder, of which nothing is kept
        mean.copy_(torch.where(used, averaged(mean, safe, self.gamma1), mean))
        square.copy_(torch.where(used, averaged(square, safe.square(), self.gamma2), square))
        seen.add_(used)
        usual = (square / one_minus_power(self.gamma2, seen)).sqrt()
        target = mean / one_minus_power(self.gamma1, seen) / (usual + self.eps)
        coefficients = torch.where(used, target / safe.clamp(min=self.eps), finite.float())
        scale_or_zero_(gradients_of(parameters), finite.float())
        scale_each_(parameters, coefficients)
        clipped = norm_of_norms(torch.where(used, safe * coefficients, 0.0))
        score = torch.where(used, norms / usual.clamp(min=TINY), 0.0).amax()
        return ClipReport(
            norm, clipped, clipped.clone(), torch.where(finite, score, norm), tensor_norms=norms
        )


def averaged(average: Tensor, value: Tensor, gamma: float) -> Tensor:
    """Return γ · average + (1 − γ) · value, with 1 − γ rounded once."""
    return torch.add(average * gamma, value, alpha=1 - gamma)


def one_minus_power(gamma: float, steps: Tensor) -> Tensor:
    """Return 1 − γ^n for each number of steps, [tensors]; for n = 0 the value of n = 1."""
    if gamma == 0:
        return torch.ones_like(steps, dtype=torch.float32)
    return -torch.expm1(math.log(gamma) * steps.clamp(min=1).float())
