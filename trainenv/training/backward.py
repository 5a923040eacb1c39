"""Loss and gradient of a step over its micro-batches, weighted by their labelled tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from trainenv.distributed.processes import ALONE, Processes
from trainenv.training.loss_weights import MeanWeights, SumWeights, above_zero
from trainenv.training.micro_batches import host_reads_are_free, labelled, share_of
from trainenv.types import LossSum, UserError


class Pass(NamedTuple):
    """Forward and backward passes of one step.

    Attributes:
        loss: Mean loss over the labelled tokens of all micro-batches, in nats; NaN without any.
        tokens: Number of labelled tokens; a scalar tensor if only the device knows it.
        known: True if any micro-batch has a labelled token, so that the gradient is that of a loss;
            a scalar bool tensor if only the device knows it.
        workers: Unscaled gradients of each micro-batch with labelled tokens, [n][parameter], whose
            mean is the gradient of the step; None unless asked for.
    """

    loss: Tensor
    tokens: Tensor | float
    known: bool | Tensor = True
    workers: list[list[Tensor]] | None = None


def as_loss(value: Any) -> Tensor | LossSum:
    """Return the value of an objective as a mean loss, a scalar tensor, or as a `LossSum`.

    Raises:
        UserError: The value is neither.
    """
    if isinstance(value, Tensor):
        return _scalar(value)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor):
        total = _scalar(value[0])
        count = value[1]
        if isinstance(count, Tensor) and count.numel() == 1 and not count.requires_grad:
            count = count.reshape(())
            count = count.item() if host_reads_are_free(count) else count
        elif isinstance(count, Real):
            count = float(count)
        else:
            raise UserError(
                "a pair that an objective returns must be (sum of the losses, number of labelled "
                "tokens), found "
                f"{_shown(value[1])} as the second; return the loss alone"
            )
        if not isinstance(count, Tensor) and not 0 <= count < math.inf:
            raise UserError(
                f"the number of labelled tokens of a loss must be 0 or more, found {count}; count "
                "labels, no weights"
            )
        return LossSum(total, count)
    raise UserError(
        "an objective must return the mean loss as a tensor, or a pair (sum of the losses, number "
        "of labelled tokens), found "
        f"{_shown(value)}; of a model's output return the loss alone"
    )


def mean_loss(losses: Sequence[Tensor | LossSum], micro_batches: Sequence[Any]) -> float:
    """Return the mean loss over the labelled tokens of micro-batches in nats; NaN without any.

    Args:
        losses: Loss of each micro-batch, without gradients.
        micro_batches: Micro-batches, in which the labels of plain means are counted.
    """
    known = labelled(micro_batches)
    counts = [
        one.tokens if isinstance(one, LossSum) else count
        for one, count in zip(losses, known, strict=True)
    ]
    found = torch.stack([mean_of(one) for one in losses]).cpu().double()
    weights = torch.tensor([float(count) for count in counts], dtype=torch.float64)
    if not weights.any():  # no label that we know of: the objective may have others
        weights = found.isfinite().double()
    with_labels = weights > 0
    return float(found[with_labels] @ weights[with_labels] / weights.sum())


def mean_of(loss: Tensor | LossSum) -> Tensor:
    """Return the mean loss of one micro-batch in nats per token; NaN without labelled tokens."""
    if not isinstance(loss, LossSum):
        return loss
    total, count = loss
    if isinstance(count, Tensor):
        return torch.where(count > 0, total / above_zero(count), math.nan)
    if count:
        return total / count
    return torch.full_like(total, math.nan)


def shared_losses(
    micro_batches: Sequence[Any],
    loss_of: Callable[[Any], Tensor | LossSum],
    processes: Processes,
) -> list[Tensor | LossSum]:
    """Return the loss of each micro-batch, without gradients; processes share the work.

    Each computes every n-th loss. A loss plus zeros has the bits that one process would find.
    """
    if processes.size == 1:
        return [loss_of(micro) for micro in micro_batches]
    many = len(micro_batches)
    found = torch.zeros(many, 2, dtype=torch.float64)
    summed = False
    device = found.device
    for start in range(0, many, processes.size):
        place = start + processes.rank
        # All compute as many losses: the passes of a sharded model wait for each other.
        loss = loss_of(micro_batches[min(place, many - 1)])
        summed = isinstance(loss, LossSum)
        total, tokens = loss if isinstance(loss, LossSum) else (loss, 1.0)
        device = total.device
        if place < many:
            found[place, 0] = float(total)
            found[place, 1] = float(tokens)
    totals = processes.total(found.to(device))
    values = [one.float() for one in totals[:, 0].unbind()]
    if not summed:
        return list(values)
    return [LossSum(one, float(count)) for one, count in zip(values, totals[:, 1].tolist())]


def backward(
    micro_batches: Sequence[Any],
    loss_of: Callable[[Any], Tensor | LossSum],
    parameters: Sequence[Tensor],
    scaler: GradScaler,
    optimizer: Optimizer,
    *,
    apart: bool,
    processes: Processes = ALONE,
    model: nn.Module | None = None,
) -> Pass:
    """Run the passes of a step; leave the gradient of the mean over labelled tokens in `p.grad`.

    A micro-batch without labelled tokens contributes nothing, whatever its loss and gradient are.
    The gradient of a step without any is 0.

    Args:
        micro_batches: Micro-batches of the step, at least one.
        loss_of: Function that returns the loss of a micro-batch.
        parameters: Parameters that the optimizer updates.
        scaler: Gradient scaler for fp16; a disabled one does nothing.
        optimizer: Optimizer whose gradients are set to zero between micro-batches.
        apart: True to keep the gradient of each micro-batch, for clip policies that need them.
        processes: Processes that train the model; each passes its share of each micro-batch.
        model: Model that is trained, if there are several processes.

    Raises:
        UserError: The objective returns a mean for one micro-batch and a pair for another, or a
            micro-batch can't be shared by the processes.
    """
    several = len(micro_batches) > 1
    workers = list[list[Tensor]]()
    shares = None
    summed = False
    apart = apart and several
    for place, micro in enumerate(micro_batches):
        last = place == len(micro_batches) - 1
        with processes.syncing(model, apart or last) if model is not None else nullcontext():
            loss = loss_of(share_of(micro, processes.rank, processes.size))
            if shares is None:
                summed = isinstance(loss, LossSum)
                kind = SumWeights if summed else MeanWeights
                shares = kind(micro_batches, apart, processes)
            if isinstance(loss, LossSum) is not summed:
                raise UserError(
                    "an objective must return the mean loss of each micro-batch, or the pair of "
                    "each; found both"
                )
            part, alive = shares.part(place, loss)  # type: ignore[arg-type]  # just checked
            _propagate(part, alive, parameters, scaler)
        if apart or last:
            processes.collect(parameters)
        if apart and alive is not False:
            workers.append([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
            optimizer.zero_grad(set_to_none=True)
        if last and shares.known is False:
            _no_gradient(part, parameters, passed=processes.size > 1)
    assert shares is not None
    factor = shares.factor
    for gradients in workers if apart else [[p.grad for p in parameters if p.grad is not None]]:
        if factor is not None and gradients:
            torch._foreach_mul_(gradients, factor)
    if workers and scaler.is_enabled():
        # The scaler looks for overflow in `p.grad`; the workers themselves are unscaled here.
        for place, parameter in enumerate(parameters):
            parameter.grad = torch.stack([worker[place] for worker in workers]).mean(0)
        scale = scaler.scale(torch.ones((), device=parameters[0].device))
        for worker in workers:
            torch._foreach_div_(worker, scale)
    return Pass(shares.mean, shares.tokens, shares.known, workers or None)


def _propagate(
    part: Tensor, alive: bool | Tensor, parameters: Sequence[Tensor], scaler: GradScaler
) -> None:
    """Add a micro-batch's gradient to `p.grad` if it contributes."""
    if alive is not False and not part.requires_grad:
        raise UserError(
            "the loss carries no gradients: expected one computed from the model's outputs; leave "
            "out detach(), item() and "
            "torch.no_grad(), and let the model's parameters require gradients"
        )
    if not isinstance(alive, Tensor):
        if alive:
            scaler.scale(part).backward()
        return

    def select(gradient: Tensor) -> Tensor:
        return torch.where(alive.to(gradient.device), gradient, 0.0)

    # Selected where it arrives: the gradient of 0 ÷ 0 is NaN, and NaN × 0 is NaN too.
    hooks = [p.register_hook(select) for p in parameters if p.layout == torch.strided]
    try:
        scaler.scale(torch.where(alive, part, 0.0)).backward()
    finally:
        for hook in hooks:
            hook.remove()


def _no_gradient(part: Tensor, parameters: Sequence[Tensor], *, passed: bool) -> None:
    """Set a zero gradient for each parameter that the loss depends on; for all if on none.

    Args:
        part: Loss.
        parameters: Trained parameters.
        passed: True if a backward pass of it has been made.
    """
    if part.requires_grad and not passed:
        part.backward()
    for p in [p for p in parameters if p.grad is not None] or parameters:
        p.grad = torch.zeros_like(p)


def _scalar(loss: Tensor) -> Tensor:
    if loss.numel() != 1 or not loss.is_floating_point():
        raise UserError(
            f"an objective must return one number, the mean loss, found {_shown(loss)}; reduce it "
            "with .mean()"
        )
    if loss.dim() == 0:
        return loss
    return loss.reshape(())


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        gradients = ""
        if value.requires_grad and value.numel() == 1:
            gradients = " with gradients"
        return (
            f"a tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}{gradients}"
        )
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of length {len(value)}"
    return type(value).__name__
