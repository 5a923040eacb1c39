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
from trainenv.training.micro_batches import (
    host_reads_are_free,
    labelled,
    pass_size,
    share_of,
)
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
        return torch.where(count > 0, total / _above_zero(count), math.nan)
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
                kind = _Sums if summed else _Means
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


class _Means:
    """Weights of micro-batches with mean losses; their labels are counted in the data.

    Equal weights give the same bits as a mean over micro-batches.
    """

    def __init__(self, micro_batches: Sequence[Any], apart: bool, processes: Processes) -> None:
        size = processes.size
        # Of all shares at once, in every process: so all know the labels of the whole batch.
        every = labelled(
            [share_of(micro, rank, size) for micro in micro_batches for rank in range(size)]
        )
        self._counts = every[processes.rank :: size]
        self._apart = apart
        self._processes = processes
        self._parts = list[Tensor]()
        self._alive: list[bool | Tensor] = []
        self.tokens: float | Tensor = sum(every)
        if size > 1:
            _check_shares(every)

    def part(self, place: int, loss: Tensor) -> tuple[Tensor, bool | Tensor]:
        """Return the value to propagate for a micro-batch, and whether it contributes at all."""
        if isinstance(self.tokens, Tensor) and host_reads_are_free(loss):
            self._counts = [int(count) for count in self._counts]
            self.tokens = int(self.tokens)
        count = self._counts[place]
        total = self.tokens
        many = len(self._counts)
        if isinstance(total, Tensor):
            total = total.to(loss.device)
            count = torch.as_tensor(count, device=loss.device)
            alive: bool | Tensor = torch.where(total > 0, count > 0, loss.isfinite())
            weights = many * self._processes.size * count.double()
            ratio = torch.where(total > 0, weights / total.clamp_min(1), 1.0)
            one = many * self._processes.size == 1
            part = loss if one else loss * ratio.to(loss.dtype)
        else:
            # Without any label that we know of, the objective has others if its loss is a number.
            alive = count > 0 if total else loss.detach().isfinite()
            alive = (
                bool(alive) if isinstance(alive, Tensor) and host_reads_are_free(alive) else alive
            )
            weight = many * self._processes.size * count
            part = loss if not total or weight == total else loss * (weight / total)
        if self._processes.size > 1:
            alive = True  # or no process could end its part of a reduction
        self._alive.append(alive)
        self._parts.append(_selected(part.detach(), alive) if many > 1 else part.detach())
        return part if many == 1 or self._apart else part / many, alive

    @property
    def known(self) -> bool | Tensor:
        """See `Pass`."""
        if self._processes.size > 1 and not self.tokens:
            lost = (~torch.stack(self._parts).isfinite()).sum().float()
            return not bool(self._processes.total(lost))
        return _any(self._alive)

    @property
    def factor(self) -> float | Tensor | None:
        """Return the factor on the gradients after the last micro-batch."""
        if self._apart:
            return _share_alive(self._alive)
        return None

    @property
    def mean(self) -> Tensor:
        """Mean over all labelled tokens."""
        mean = self._parts[0]
        if len(self._parts) > 1:
            mean = _where(self.known, torch.stack(self._parts).mean())
        size = self._processes.size
        if size > 1:
            return self._processes.total(mean) / size
        return mean


class _Sums:
    """Weights of micro-batches with summed losses; their tokens are counted along the way.

    Until the last one was seen, gradients are divided by the tokens in the data, so that they have
    a usual size for fp16.
    """

    def __init__(self, micro_batches: Sequence[Any], apart: bool, processes: Processes) -> None:
        self._many = len(micro_batches)
        self._apart = apart
        self._processes = processes
        self._complete = processes.size == 1
        self._guess = sum(pass_size(micro) for micro in micro_batches)
        self._totals = list[Tensor]()
        self._counts = list[float | Tensor]()

    def part(self, place: int, loss: LossSum) -> tuple[Tensor, bool | Tensor]:
        """Return the value to propagate for a micro-batch, and whether it contributes at all."""
        total, count = loss
        alive = count > 0
        self._totals.append(_selected(total.detach(), alive))
        self._counts.append(count)
        size = self._processes.size
        if size > 1:
            # The sum of nothing is 0, so every process has a gradient to give to a reduction.
            return total * size * (
                self._many / self._guess if self._apart else 1 / self._guess
            ), True
        if self._many == 1:
            return total / _above_zero(count), alive
        return total * (self._many / self._guess if self._apart else 1 / self._guess), alive

    @property
    def tokens(self) -> float | Tensor:
        """Number of labelled tokens of all micro-batches."""
        self._complete_sums()
        return sum(self._counts)

    def _complete_sums(self) -> None:
        """Add up sums and counts over the processes, once, after the last micro-batch."""
        if self._complete:
            return
        self._complete = True
        counts = [torch.as_tensor(one, device=self._totals[0].device) for one in self._counts]
        both = torch.stack([one.double() for one in (*self._totals, *counts)])
        both = self._processes.total(both)
        self._totals = list(both[: self._many].to(self._totals[0].dtype).unbind())
        self._counts = list(both[self._many :].unbind())
        if host_reads_are_free(both):
            self._counts = [float(one) for one in self._counts]

    @property
    def factor(self) -> float | Tensor | None:
        """Return the factor on the gradients after the last micro-batch."""
        if self._many == 1 and self._processes.size == 1:
            return None
        tokens = self.tokens
        share = (
            _share_alive([count > 0 for count in self._counts]) if self._apart else None
        ) or 1.0
        if isinstance(tokens, Tensor):
            wanted: Tensor = share * self._guess / _above_zero(tokens).double()
            return wanted
        if tokens and tokens != share * self._guess:
            return share * self._guess / tokens
        return None

    @property
    def known(self) -> bool | Tensor:
        """See `Pass`."""
        self._complete_sums()
        return _any([count > 0 for count in self._counts])

    @property
    def mean(self) -> Tensor:
        """Mean over all labelled tokens."""
        self._complete_sums()
        total = torch.stack(self._totals).sum() if self._many > 1 else self._totals[0]
        return _where(self.known, total / _above_zero(self.tokens))


def _check_shares(counts: Sequence[int | Tensor]) -> None:
    """Refuse a step in which a process has no labelled token, of which the mean would be NaN."""
    known = [int(count) for count in counts]
    if any(known) and not all(known):
        raise UserError(
            "with several processes, each share of a micro-batch needs a labelled token, found one "
            "without; return the pair (sum of the losses, number of labelled tokens), or start "
            "fewer processes"
        )


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


def _selected(value: Tensor, alive: bool | Tensor) -> Tensor:
    """Return the value if it contributes, else 0."""
    return (
        torch.where(alive, value, 0.0)
        if isinstance(alive, Tensor)
        else value
        if alive
        else torch.zeros_like(value)
    )


def _any(alive: Sequence[bool | Tensor]) -> bool | Tensor:
    if any(one is True for one in alive):
        return True
    waiting = [one for one in alive if isinstance(one, Tensor)]
    if waiting:
        return torch.stack(waiting).any()
    return False


def _share_alive(alive: Sequence[bool | Tensor]) -> float | None:
    """Return the share of micro-batches that contribute; None if all do."""
    kept = sum(one is not False for one in alive)
    if 0 < kept < len(alive):
        return kept / len(alive)
    return None


def _where(known: bool | Tensor, value: Tensor) -> Tensor:
    """Return the value if it is known, else NaN."""
    if isinstance(known, Tensor):
        return torch.where(known, value, math.nan)
    if known:
        return value
    return torch.full_like(value, math.nan)


def _above_zero(count: float | Tensor) -> Any:
    """Return the count if it is above 0, else 1."""
    if isinstance(count, Tensor):
        return torch.where(count > 0, count, 1)
    return count or 1


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
