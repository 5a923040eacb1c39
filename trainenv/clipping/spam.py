"""SPAM, spike-aware Adam with momentum reset (Huang et al. 2025, arXiv:2501.06842).

Gradients are clipped element by element against √V.

With V the optimizer's second moment *before* this step, without bias correction:

    where g² > θ·V:   g ← sign(g)·√(θ·V)          that is, g ← clamp(g, −√(θV), √(θV))

No clipping in the first `warmup` steps of a cycle of `interval` steps (ΔT); at the end of each
cycle the moments are reset.

The policy does not change the optimizer. At steps ΔT, 2ΔT, … it clips against the old V as usual
and returns `momentum_reset=True`. The caller then sets both moments *and Adam's step count* to 0
before the update, and warms the learning rate up again (in the paper by 1 − a cosine decay from
0.99 over 150 steps). The authors' code keeps Adam's step count, so the bias correction is missing
and updates are about 3 times too large after each reset.

Deviations from the paper:
- *Unseen elements pass*: where V = 0 the formula turns every gradient into 0, so V stays 0 and the
  element (the embedding of a token not seen so far, for instance) never changes. Here such elements
  pass; `unseen="clip"` is the form of the paper.
- *Own V*: without an optimizer that has Adam's `exp_avg_sq`, the policy keeps V itself: a moving
  average of the squared clipped gradient with β₂ = `beta2`, also reset at the end of a cycle.
- *Non-finite steps*: with a norm of inf or NaN the whole gradient becomes 0 (the optimizer then
  moves by momentum and decay only) and V stays as it was. The cycle counts every step.

As published, a spike in the first steps after a reset passes.
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
    constant,
    device_of,
    global_norm,
    gradients_of,
    is_finite,
    mean_of_elements,
    scale_or_zero_,
)
from trainenv.tools.checks import choice, count, number
from trainenv.types import ClipReport, UserError

Unseen = Literal["keep", "clip"]


@dataclass(frozen=True, kw_only=True)
class SPAM:
    """Element-wise clipping with periodic momentum resets.

    The score is the share of clipped elements. The threshold is the mean of √(θV) over elements,
    inf in the first steps of a cycle.

    Args:
        threshold: Largest ratio of a squared gradient element to its V, θ.
        interval: Steps in a cycle, that is, between momentum resets, ΔT.
        warmup: Steps without clipping at the start of each cycle, fewer than `interval`.
        unseen: Treatment of elements with V = 0: `keep` leaves them, `clip` (the paper) makes them
            0.
        beta2: Decay of the policy's own V a step, between 0 and 1; not used with Adam's V.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    needs_workers: ClassVar[bool] = False

    threshold: float = 5000.0
    interval: int = 500
    warmup: int = 20
    unseen: Unseen = "keep"
    beta2: float = 0.999

    def __post_init__(self) -> None:
        number("threshold", self.threshold, above=0)
        object.__setattr__(self, "interval", count("interval", self.interval, least=1))
        object.__setattr__(self, "warmup", count("warmup", self.warmup, least=0))
        choice("unseen", self.unseen, get_args(Unseen))
        number("beta2", self.beta2, above=0, below=1)
        if self.warmup >= self.interval:
            raise UserError(
                f"warmup must be below interval ({self.interval}), found {self.warmup}; lower it, "
                "since nothing would ever be clipped"
            )

    def init(self, parameters: Sequence[Tensor], /) -> dict[str, Tensor]:
        """Return a fresh state.

        It has the number of calls, `step` (0-d int64, on the CPU), and the policy's own V, `v`
        (float32, all elements in a row, empty until needed).
        """
        device = device_of(parameters)
        # The host decides about a reset, so the step is on the CPU: reading it waits for no device.
        return {
            "step": torch.zeros((), dtype=torch.int64),
            "v": torch.zeros(0, dtype=torch.float32, device=device),
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
        """Clamp each gradient element to ±√(θV), then count the step."""
        step = int(state["step"]) + 1
        state["step"].fill_(step)
        clips = (step - 1) % self.interval >= self.warmup
        reset = step % self.interval == 0
        gradients = gradients_of(parameters)
        kept = second_moments(parameters, optimizer)
        if clips:
            bound = own(state["v"], gradients).clone() if kept is None else flatten(kept)
            bound.sqrt_().mul_(math.sqrt(self.threshold))  # √V·√θ, because θ·V could overflow
            report = self._clamp(gradients, bound, reset)
        else:
            report = pass_finite(gradients, reset)
        if kept is None:
            state["v"] = self._updated(
                own(state["v"], gradients), gradients, is_finite(report.norm), reset
            )
        elif state["v"].numel():  # left from an optimizer without second moments
            state["v"] = state["v"].new_zeros(0)
        return report

    def _clamp(self, gradients: list[Tensor], bound: Tensor, reset: bool) -> ClipReport:
        """Clamp the gradients to ±`bound`, √(θV) [elements], which is overwritten.

        All elements are in one row: a dozen passes over many small tensors would cost more.
        """
        flat = flatten(gradients)  # [elements]
        norm = global_norm([flat])
        finite = is_finite(norm)
        mean = mean_of_elements(bound)
        if self.unseen == "keep":
            torch.threshold_(bound, 0.0, math.inf)  # bound 0 → inf
            mean = torch.where(mean > 0, mean, math.inf)
        clamped = torch.minimum(flat, bound)
        torch.maximum(clamped, bound.neg_(), out=clamped)
        pieces = torch.split(clamped, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients,
            [piece.view(gradient.shape) for piece, gradient in zip(pieces, gradients, strict=True)],
        )
        scale_or_zero_(gradients, finite.float())
        # Written as floats: several times faster than the mean of bools.
        share = mean_of_elements(torch.ne(clamped, flat, out=bound))
        return ClipReport(
            norm,
            torch.where(finite, global_norm([clamped]), 0.0),
            mean,
            share,
            momentum_reset=reset,
        )

    def _updated(self, v: Tensor, gradients: list[Tensor], finite: Tensor, reset: bool) -> Tensor:
        """Return V after the clipped gradient of this step; V stays as it was if not finite."""
        if reset:
            v = torch.zeros_like(v)
        return torch.where(finite, torch.lerp(v, flatten(gradients).square_(), 1 - self.beta2), v)


def pass_finite(gradients: list[Tensor], reset: bool) -> ClipReport:
    """Leave the gradient unchanged, or make it 0 if it is not finite."""
    norm = global_norm(gradients)
    finite = is_finite(norm)
    scale_or_zero_(gradients, finite.float())
    return ClipReport(
        norm,
        torch.where(finite, norm, 0.0),
        constant(math.inf, norm),
        constant(0.0, norm),
        momentum_reset=reset,
    )


def second_moments(
    parameters: Sequence[Tensor], optimizer: Optimizer | None
) -> list[Tensor] | None:
    """Return the second moments of the optimizer, 0 before its first step.

    None if the optimizer never has any.
    """
    if optimizer is None:
        return None
    moments = [optimizer.state.get(p, {}).get("exp_avg_sq") for p in parameters]
    stepped = any(optimizer.state.get(p) for p in parameters)
    if all(v is None for v in moments) and (
        "betas" not in getattr(optimizer, "defaults", {}) or stepped
    ):
        return None
    return [
        torch.zeros_like(p) if v is None else v for p, v in zip(parameters, moments, strict=True)
    ]


def own(v: Tensor, gradients: list[Tensor]) -> Tensor:
    """Return the policy's own V, [elements]; all 0 at first.

    Raises:
        UserError: The state has V for another number of elements.
    """
    elements = sum(gradient.numel() for gradient in gradients)
    if v.numel() == 0:
        return v.new_zeros(elements)
    if v.numel() != elements:
        raise UserError(
            f"spam keeps the second moments of {v.numel()} elements, found gradients of {elements};"
            " give the same parameters at each step, or an optimizer that has exp_avg_sq"
        )
    return v


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return all elements in a row, float32 [elements]."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).float()
