"""ZClip (Kumar et al. 2025, arXiv:2504.02507): clip norms that are unusual for the run.

With g the global L2 norm, and μ and σ² the moving mean and variance of norms *before* this step:

    z = (g − μ) / (σ + ε)
    adaptive     c = μ + z*²·σ / z   where z > z*      (z* = `z_threshold`)
    mean         c = μ               where z > z*
    percentile   c = μ + z*·σ        where g > c
    gradient ← gradient · min(1, min(c, M) / g)         (M = `max_norm`)
    x = c where it clipped, else g;  μ ← αμ + (1 − α)x;  σ² ← ασ² + (1 − α)(x − μ_new)²

The first `warmup` steps only clip at M and collect raw norms; μ and σ² start as their mean and
population variance.

Deviations from the authors' code:
- *Non-finite steps*: a norm of inf or NaN leaves μ, σ² and the count of the warm-up as they were,
  and the whole gradient becomes 0 (the optimizer then moves by momentum and decay only). In the
  authors' code one NaN makes μ NaN for the rest of the run.
- *Running warm-up*: mean and variance are updated step by step (Welford) instead of from a list of
  norms.
- *No ε in the scaling*: the authors divide by g + ε, so that even a gradient that is not clipped
  shrinks a little; here it keeps its bits.
- *State on the device*: nothing is read on the host, and the state can be saved.

As published, clipped steps update the statistics with c, not g. So they follow a large permanent
rise of the norms slowly (in mode `mean` not at all).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainenv.clipping.norms import (
    device_of,
    gradients_of,
    is_finite,
    norm_of_norms,
    scale_or_zero_,
    tensor_norms,
)
from trainenv.tools.checks import choice, count, number
from trainenv.types import ClipReport

Mode = Literal["adaptive", "mean", "percentile"]


@dataclass(frozen=True, kw_only=True)
class ZClip:
    """Adaptive clipping by z-score.

    The score is z (0 during the warm-up); the threshold is the largest norm that passes this step.

    Args:
        alpha: Decay of μ and σ² a step, between 0 and 1.
        z_threshold: Standard deviations above the mean from which a norm is clipped, z*.
        warmup: Steps with a finite norm before z-scores are used; at least 1.
        mode: Norm that unusual gradients are scaled to: `adaptive`, `mean` or `percentile`; see the
            module.
        max_norm: Largest global norm (L2) at every step, in the warm-up too, M; None for none.
        eps: Number added to σ in z (L2 norm), ε.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    needs_workers: ClassVar[bool] = False

    alpha: float = 0.97
    z_threshold: float = 2.5
    warmup: int = 25
    mode: Mode = "adaptive"
    max_norm: float | None = 1.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        number("alpha", self.alpha, above=0, below=1)
        number("z_threshold", self.z_threshold, above=0)
        object.__setattr__(self, "warmup", count("warmup", self.warmup, least=1))
        choice("mode", self.mode, get_args(Mode))
        if self.max_norm is not None:
            number("max_norm", self.max_norm, above=0)
        number("eps", self.eps, above=0)

    def init(self, parameters: Sequence[Tensor], /) -> dict[str, Tensor]:
        """Return a fresh state, all 0-d tensors.

        It has the `mean` and the `variance` of the norms (float32) and the number of finite norms
        `seen` (int64).
        """
        device = device_of(parameters)
        return {
            "mean": torch.zeros((), dtype=torch.float32, device=device),
            "variance": torch.zeros((), dtype=torch.float32, device=device),
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
        """Scale the gradients to this step's cap, then update the statistics."""
        gradients = gradients_of(parameters)
        norms = tensor_norms(gradients)
        norm = norm_of_norms(norms)
        warm = state["seen"] < self.warmup
        deviation = state["variance"].sqrt()
        z = ((norm - state["mean"]) / (deviation + self.eps)).masked_fill_(warm, 0.0)
        target = self._target(state["mean"], deviation, z, warm)
        threshold = target
        if self.max_norm is not None:
            threshold = target.clamp(max=self.max_norm)
        # 0 for inf and NaN; norm 0 gives inf, then 1
        coefficient = (threshold / norm).clamp_(max=1.0).nan_to_num_(0.0)
        scale_or_zero_(gradients, coefficient)
        self._update(state, torch.minimum(norm, target), is_finite(norm), warm)
        clipped = (norm * coefficient).nan_to_num_(0.0)
        return ClipReport(norm, clipped, threshold, z, tensor_norms=norms)

    def _target(self, mean: Tensor, deviation: Tensor, z: Tensor, warm: Tensor) -> Tensor:
        """Return the norm c to scale to, 0-d; inf if the norm is usual, and in the warm-up."""
        if self.mode == "percentile":
            return torch.add(mean, deviation, alpha=self.z_threshold).masked_fill_(warm, math.inf)
        usual = z.le(self.z_threshold)  # z is 0 in the warm-up
        if self.mode == "mean":
            return mean.masked_fill(usual, math.inf)
        return torch.addcdiv(mean, deviation, z, value=self.z_threshold**2).masked_fill_(
            usual, math.inf
        )

    def _update(self, state: dict[str, Tensor], fed: Tensor, finite: Tensor, warm: Tensor) -> None:
        """Move mean and variance towards the norm `fed`.

        The weight is 1/n in the warm-up, 1 − α afterwards, and 0 for a non-finite norm.
        """
        mean = state["mean"]
        variance = state["variance"]
        seen = state["seen"]
        seen.add_(finite)
        weight = seen.reciprocal().masked_fill_(~warm, 1 - self.alpha).masked_fill_(~finite, 0.0)
        fed = torch.where(finite, fed, mean)
        moved = torch.lerp(mean, fed, weight)
        # Welford's product over both means gives the population variance; the moving variance takes
        # the new mean twice.
        variance.lerp_((fed - moved) * (fed - torch.where(warm, mean, moved)), weight)
        mean.copy_(moved)
