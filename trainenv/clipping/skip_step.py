"""Skip-step of OLMo-core (OLMo team 2024, arXiv:2501.00656): leave out steps that look like spikes.

With the loss l and the global L2 norm g of this step, and mean μ and standard deviation s (over
n − 1) of each over the `window` steps before it:

    skip the step  ⇔  l − μ_l > 6 s_l   or   g − μ_g > 6 s_g          (6 = `sigma`)

Nothing is skipped before the statistics have max(20, window ÷ 2) − 1 steps. A skipped step changes
neither weights nor moments: `ClipReport.skip` asks the caller to leave the optimizer out, and the
gradient becomes 0 for a caller that cannot (it then moves by momentum and decay only). As
published, the loss and norm of a skipped step enter the statistics, so that a permanent rise is
skipped for some steps only.

Deviations from OLMo-core's `SkipStepOptimizer`:
- *Any optimizer*: there each optimizer has a skipping form of its own; here it is a clip policy.
- *Non-finite steps* are skipped from the first step on and enter no statistics. There a loss of NaN
  enters the window, and every step is skipped until it leaves it.
- *Without a loss*, where the caller gives none, the norm alone decides.
- *State on the device*: the window is a tensor, nothing is read on the host, and it can be saved.
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
    scale_or_zero_,
    tensor_norms,
)
from trainenv.tools.checks import count, number
from trainenv.types import ClipReport

_LEAST = (
    20  # steps, this one included, before anything is skipped; or half a window if that is more
)


@dataclass(frozen=True, kw_only=True)
class SkipStep:
    """Leaving out of steps whose loss or gradient norm is far above the usual.

    The score is the larger z of loss and norm, (x − μ) ÷ s, 0 before the statistics are used. The
    threshold is the largest norm that passes.

    Args:
        sigma: Standard deviations above the mean from which a step is skipped, above 0.
        window: Number of earlier steps in the statistics; at least 2.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    needs_workers: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = True

    sigma: float = 6.0
    window: int = 128

    def __post_init__(self) -> None:
        number("sigma", self.sigma, above=0)
        object.__setattr__(self, "window", count("window", self.window, least=2))

    def init(self, parameters: Sequence[Tensor], /) -> dict[str, Tensor]:
        """Return a fresh state.

        It has the last `losses` and `norms` (float32 [window], oldest first, 0 where there is none)
        and the number of entries of each, `losses_seen` and `norms_seen` (int64, 0-d).
        """
        device = device_of(parameters)
        state = {}
        for name in ("losses", "norms"):
            state[name] = torch.zeros(self.window, dtype=torch.float32, device=device)
            state[f"{name}_seen"] = torch.zeros((), dtype=torch.int64, device=device)
        return state

    def clip(
        self,
        parameters: Sequence[Tensor],
        state: dict[str, Tensor],
        /,
        *,
        workers: Sequence[Sequence[Tensor]] | None = None,
        optimizer: Optimizer | None = None,
        loss: Tensor | None = None,
    ) -> ClipReport:
        """Ask to skip the step, and zero its gradient, if loss or norm is far above the usual."""
        gradients = gradients_of(parameters)
        norms = tensor_norms(gradients)
        norm = norm_of_norms(norms)
        above, score, threshold = self._judge(norm, state, "norms")
        valid = is_finite(norm)
        values = {"norms": norm}
        if loss is not None:
            value = loss.detach().to(norm.device, torch.float32).reshape(())
            loss_above, loss_score, _ = self._judge(value, state, "losses")
            above = above | loss_above
            score = torch.maximum(score, loss_score)
            valid = valid & value.isfinite()
            values["losses"] = value
        for name, value in values.items():
            self._enter(state, name, value, valid)
        skip = above | ~valid
        kept = (~skip).float()
        scale_or_zero_(gradients, kept)
        clipped = torch.where(skip, 0.0, norm)
        return ClipReport(norm, clipped, threshold, score, skip=skip, tensor_norms=norms)

    def _judge(
        self, value: Tensor, state: dict[str, Tensor], name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return if a value is far above its mean, its z, and the largest value that passes."""
        window = state[name]
        seen = state[f"{name}_seen"].clamp(max=self.window)
        # The newest entries are at the end, so that the first ones are those still missing.
        known = torch.arange(self.window, device=window.device) >= self.window - seen  # [window]
        mean = torch.where(known, window, 0.0).sum() / seen.clamp(min=1)
        squares = torch.where(known, window - mean, 0.0).square().sum()
        deviation = (squares / (seen - 1).clamp(min=1)).sqrt()
        warm = seen < max(_LEAST, self.window // 2) - 1
        bound = torch.addcmul(mean, deviation, torch.ones_like(mean), value=self.sigma)
        z = (value - mean) / deviation.clamp(min=TINY)
        return (
            (value > bound) & ~warm,
            z.masked_fill(warm & value.isfinite(), 0.0),
            bound.masked_fill(warm, math.inf),
        )

    def _enter(self, state: dict[str, Tensor], name: str, value: Tensor, valid: Tensor) -> None:
        """Move a value into its window, and the oldest out of it, unless the step is not valid."""
        window = state[name]
        window.copy_(torch.where(valid, torch.cat((window[1:], value[None])), window))
        state[f"{name}_seen"].add_(valid)
