"""The backward pass of one step, over its micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer


def backward(
    micro_batches: Sequence[Any],
    loss_of: Callable[[Any], Tensor],
    parameters: Sequence[Tensor],
    scaler: GradScaler,
    optimizer: Optimizer,
    *,
    apart: bool,
) -> tuple[Tensor, list[list[Tensor]] | None]:
    """Mean loss over the micro-batches, with the mean gradient in `p.grad`, scaled where the scaler is enabled.

    Args:
        micro_batches: one or more.
        loss_of: the loss of a micro-batch, in nats per token.
        parameters: those that the optimizer updates.
        scaler: for fp16; a disabled one does nothing.
        optimizer: whose gradients are set to zero in between.
        apart: keep the gradient of each micro-batch, for clip policies that look at them.

    Returns:
        The loss, and the unscaled gradients of each micro-batch, [n][parameter], where they are wanted and there are several.
    """
    if len(micro_batches) == 1:
        loss = loss_of(micro_batches[0])
        scaler.scale(loss).backward()
        return loss.detach(), None
    losses, workers = [], []
    for micro in micro_batches:
        loss = loss_of(micro)
        scaler.scale(loss if apart else loss / len(micro_batches)).backward()
        losses.append(loss.detach())
        if apart:
            workers.append([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
            optimizer.zero_grad(set_to_none=True)
    if apart and scaler.is_enabled():
        # The scaler looks for overflow in `p.grad`; the workers themselves are unscaled here.
        for place, parameter in enumerate(parameters):
            parameter.grad = torch.stack([worker[place] for worker in workers]).mean(0)
        scale = scaler.scale(torch.ones((), device=parameters[0].device))
        for worker in workers:
            torch._foreach_div_(worker, scale)
    return torch.stack(losses).mean(), workers if apart else None
