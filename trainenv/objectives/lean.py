"""Backward pass of several losses on one trunk, one loss at a time.

The usual way keeps the logits of all heads until the backward pass. Here each loss is computed and
differentiated in turn, at the detached output of the trunk, while the forward pass runs. Its
gradients are added up and handed on when `backward` arrives. So the logits of one head are in
memory at a time, and the returned loss still works with `loss.backward()`, accumulation and loss
scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Losses = Callable[..., Iterator[Tensor]]
"""Function of leaves that replace the trunk's outputs → losses, each made when it is asked for."""


def lean_sum(losses: Losses, outputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return the sum of losses; its gradients are computed at once.

    Args:
        losses: Function that yields each loss, given a leaf for each of the outputs. What it
            yields must hold no part of the graph of another loss.
        outputs: Outputs of the trunk, with their graph.
        parameters: Parameters that the losses depend on, not through the outputs.
    """
    total: Tensor = _Lean.apply(losses, len(outputs), *outputs, *parameters)
    return total


class _Lean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, losses: Losses, outputs: int, *tensors: Tensor) -> Tensor:
        needed = ctx.needs_input_grad[2:]  # a frozen trunk needs no gradient
        leaves = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(tensors[:outputs], needed, strict=False)
        ]
        every = [*leaves, *tensors[outputs:]]
        places = [place for place, need in enumerate(needed) if need]
        wanted = [every[place] for place in places]
        gradients: list[Tensor | None] = [None] * len(every)
        total: Tensor | None = None
        with torch.enable_grad():
            for loss in losses(*leaves):
                if loss.requires_grad:
                    found = torch.autograd.grad(loss, wanted, allow_unused=True)
                    _add(gradients, places, found)
                value = loss.detach()
                del loss
                total = value if total is None else total + value
        ctx.gradients = gradients
        assert total is not None
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        if gradients is None:
            raise RuntimeError(
                "trying to go backward through the loss a second time: its gradients are used up; "
                "compute the loss again"
            )
        ctx.gradients = None
        scaled = [None if one is None else one.mul_(factor) for one in gradients]
        return (None, None, *scaled)


def _add(
    sums: list[Tensor | None], places: Sequence[int], gradients: Sequence[Tensor | None]
) -> None:
    """Add gradients to the sums at their places, in place."""
    for place, gradient in zip(places, gradients, strict=True):
        if gradient is None:
            continue
        known = sums[place]
        if known is None:
            sums[place] = gradient.contiguous()  # it is scaled in place
        else:
            known.add_(gradient)
