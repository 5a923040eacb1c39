"""SPAM, spike-aware Adam with momentum reset (Huang et al.

2025, arXiv:2501.06842): clip element by element against √V.

With V the optimizer's second moment *before* this step, without bias correction:

    where g² > θ·V:   g ← sign(g)·√(θ·V)          that is, g ← clamp(g, −√(θV), √(θV))

No clipping in the first `warmup` steps of a cycle of `interval` steps (ΔT); at the end of each
cycle the moments are reset.

The policy never touches the optimizer: at steps ΔT, 2ΔT, … it clips against the old V as ever and
returns `momentum_reset=True`. Whoever runs it then zeroes both moments *and Adam's step count*
before the update, and warms the learning rate up again (in the paper by 1 − a cosine decay from
0.99 over 150 steps). The authors' code leaves Adam's step count, so that the bias correction is
missing and updates run about 3 times too large after each reset.

Deviations from the paper:
- *Unseen elements are kept*: where V = 0 the formula turns every gradient into 0, so V stays 0 and the element (the
  embedding of a token not seen so far, say) is frozen for ever. Here such elements pass;
  `unseen="clip"` is the paper's form.
- *Own V*: an optimizer without Adam's `exp_avg_sq` (or none) makes the policy keep V itself, a moving average of the
  squared clipped gradient with β₂ = `beta2`, reset at the end of a cycle too.
- *Non-finite steps*: with a norm of inf or NaN the whole gradient becomes 0 (the optimizer then moves by momentum and decay
  only) and V stays as it was. The cycle counts every step, whatever its gradient.

Kept as published: a spike in the first steps after a reset passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainenv.clipping.norms import constant, global_norm, gradients_of, is_finite, scale_or_zero_
from trainenv.tools.checks import choice, count, number
from trainenv.types import ClipReport, UserError

Unseen = Literal["keep", "clip"]


@dataclass(frozen=True, kw_only=True)
class SPAM:
    """Element-wise clipping with periodic momentum resets.

    The score is the share of elements clipped.

    The reported threshold is the mean over elements of √(θV), inf in the first steps of a cycle.

    Args:
        threshold: θ, how many times its V a squared gradient element may be.
        interval: ΔT, steps a cycle, and between momentum resets.
        warmup: steps without clipping at the start of each cycle, fewer than `interval`.
        unseen: what becomes of elements with V = 0: "keep" leaves them, "clip" (the paper) makes
            them 0.
        beta2: decay a step of the policy's own V, between 0 and 1; not used with Adam's.

    Raises:
        UserError: a hyperparameter is out of range.
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
                f"warmup must be below interval ({self.interval}), found {self.warmup}; nothing would ever be clipped: lower it"
            )

    def init(self, parameters: Sequence[Tensor], /) -> dict[str, Tensor]:
        """`step`: calls so far (0-d int64, on the CPU); `v`: the policy's own V, of all elements in a row, empty until needed."""
        device = parameters[0].device if parameters else None
        # On the CPU, because whether to reset is decided on the host, and reading it there waits
        # for no device.
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
            bound = flatten(kept) if kept is not None else own(state["v"], gradients).clone()
            report = self._clamp(
                gradients, bound.sqrt_().mul_(math.sqrt(self.threshold)), reset
            )  # √V·√θ: θ·V could overflow
        else:
            report = pass_finite(gradients, reset)
        if kept is None:
            state["v"] = self._updated(
                own(state["v"], gradients), gradients, is_finite(report.norm), reset
            )
        elif state["v"].numel():  # another optimizer kept none
            state["v"] = state["v"].new_zeros(0)
        return report

    def _clamp(self, gradients: list[Tensor], bound: Tensor, reset: bool) -> ClipReport:
        """Clamp to ±`bound` (√(θV), [elements]; used up), all in one row: a dozen passes over many small tensors cost more."""
        flat = flatten(gradients)  # [elements]
        norm = global_norm([flat])
        finite = is_finite(norm)
        mean = bound.mean()
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
        share = torch.ne(
            clamped, flat, out=bound
        ).mean()  # into floats: several times faster than the mean of bools
        return ClipReport(
            norm,
            torch.where(finite, global_norm([clamped]), 0.0),
            mean,
            share,
            momentum_reset=reset,
        )

    def _updated(self, v: Tensor, gradients: list[Tensor], finite: Tensor, reset: bool) -> Tensor:
        """V after this step's clipped gradient, which is 0 where it was not finite."""
        v = torch.zeros_like(v) if reset else v
        return torch.where(finite, torch.lerp(v, flatten(gradients).square_(), 1 - self.beta2), v)


def pass_finite(gradients: list[Tensor], reset: bool) -> ClipReport:
    """The gradient unchanged, or 0 where it is not finite."""
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
    """The optimizer's second moments, 0 where it has none yet; None where it will never have any."""
    if optimizer is None:
        return None
    found = [optimizer.state.get(p, {}).get("exp_avg_sq") for p in parameters]
    if all(v is None for v in found) and (
        "betas" not in optimizer.defaults or any(optimizer.state.get(p) for p in parameters)
    ):
        return None
    return [torch.zeros_like(p) if v is None else v for p, v in zip(parameters, found, strict=True)]


def own(v: Tensor, gradients: list[Tensor]) -> Tensor:
    """The policy's own V, all 0 at first.

    Raises:
        UserError: it was kept for another number of elements.
    """
    elements = sum(gradient.numel() for gradient in gradients)
    if v.numel() == 0:
        return v.new_zeros(elements)
    if v.numel() != elements:
        raise UserError(
            f"spam keeps the second moment of {v.numel()} elements, found gradients of {elements}; "
            "give the same parameters at each step, or an optimizer that keeps exp_avg_sq"
        )
    return v


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All elements in a row, float32."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).float()
