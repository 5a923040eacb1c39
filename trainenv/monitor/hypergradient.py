"""The hypergradient of the learning rate (Baydin et al. 2018, arXiv:1703.04782), for any optimizer.

Its scale-free form is the cosine of the gradient and the last update. For Adam the update follows
from the moments, and nothing is kept. For every other optimizer it is the difference of the weights
over the step, decay included: before a step whose update is to be measured, the weights are copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from trainenv.config.schema import MonitorConfig
from trainenv.distributed.shards import completes, over_shards

# A parameter, its optimizer state and its group.
Row = tuple[Tensor, dict[str, Any], dict[str, Any]]

# The cosine is measured more often at the start: `_PER_WARMUP` times a warm-up, for `_WARMUPS`
# times the length of the warm-up.
_WARMUPS = 3
_PER_WARMUP = 16
# Most elements in a chunk, so that the temporary copies of a large model stay small.
_CHUNK = 2**24


def due(step: int, monitor: MonitorConfig, warmup: int) -> bool:
    """Decide if the cosine is measured in the next step.

    Args:
        step: Number of completed steps.
        monitor: Configuration of the monitor.
        warmup: Length of the learning-rate warm-up, steps.
    """
    if not (monitor.enabled and monitor.probe_every):
        return False
    every = 2 * monitor.probe_every
    if step < _WARMUPS * warmup:
        every = min(every, max(1, warmup // _PER_WARMUP))
    return step % every == 0


def hypergradient(parameters: Sequence[Tensor], optimizer: Optimizer) -> tuple[Tensor, Tensor]:
    """Return the cosine cos(g_t, u_{t−1}) and the update ratio η‖u_{t−1}‖ / ‖w‖, 0-d tensors.

    The slope of the loss in ln η is −η⟨g_t, u_{t−1}⟩, with u the direction that the optimizer
    *subtracted* last: a positive cosine means that a larger learning rate would have done better.
    Call it between the backward pass and the step of the optimizer: the moments are then still
    those of the last update, so no copy of the update is needed.

    Args:
        parameters: Parameters with a gradient.
        optimizer: Adam optimizer (state `exp_avg`, `exp_avg_sq`, `step`). For another optimizer, or
            before the first step, both results are NaN; see `ObservedStep`.
    """
    device = parameters[0].device
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rows = [(p, optimizer.state.get(p, {}), groups.get(id(p), {})) for p in parameters]
    if not all(_has_moments(state) for _, state, _ in rows):
        nan = torch.full((), math.nan, device=device)
        return nan, nan
    _, state, group = rows[0]
    steps = torch.as_tensor(state["step"], dtype=torch.float32).to(device)
    beta1, beta2 = group["betas"]
    eps = group["eps"]
    lr = group["lr"]
    root = (1 - beta2**steps).sqrt()
    dot, gradient, update, weight = (torch.zeros((), device=device) for _ in range(4))
    for chunk in _chunks(rows):
        grads = [p.grad for p, _, _ in chunk if p.grad is not None]
        # m / (√(v / c) + ε) = √c · m / (√v + ε√c): multiplying by the scalar √c at the end saves a
        # pass over the memory.
        bottoms = torch._foreach_sqrt([state["exp_avg_sq"] for _, state, _ in chunk])
        torch._foreach_add_(bottoms, eps * root)
        updates = torch._foreach_div([state["exp_avg"] for _, state, _ in chunk], bottoms)
        dot += torch.stack(
            [torch.dot(g.flatten(), u.flatten()) for g, u in zip(grads, updates)]
        ).sum()
        gradient += _square(grads)
        update += _square(updates)
        weight += _square([p.detach() for p, _, _ in chunk])
    dot, gradient, update, weight = _whole(dot, gradient, update, weight)
    cosine = dot / (gradient.sqrt() * update.sqrt()).clamp_min(1e-30)
    ratio = lr * root * update.sqrt() / (1 - beta1**steps) / weight.sqrt().clamp_min(1e-30)
    return cosine, ratio


class ObservedStep:
    """The update of one step, measured at the next, for optimizers that are no Adam.

    Attributes:
        before: Copies of the weights from before the last step; None where the next step measures
            nothing, or measures by Adam's moments. They are part of the state of a run.
    """

    def __init__(self) -> None:
        self.before: list[Tensor] | None = None

    @torch.no_grad()
    def observe(self, parameters: Sequence[Tensor], optimizer: Optimizer, *, wanted: bool) -> None:
        """Copy the weights before a step if the next one measures its update from them.

        Args:
            parameters: All trained parameters, in the order in which `measure` gets them.
            optimizer: Optimizer that is about to step.
            wanted: True if the next step measures the hypergradient.
        """
        self.before = None
        known = isinstance(optimizer, Adam | AdamW) or all(
            _has_moments(optimizer.state.get(p, {})) for p in parameters
        )
        if wanted and not known:
            self.before = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def measure(self, parameters: Sequence[Tensor], optimizer: Optimizer) -> tuple[Tensor, Tensor]:
        """Return cosine and update ratio as `hypergradient` does; NaN if nothing was observed.

        Args:
            parameters: All trained parameters, with their gradients.
            optimizer: Optimizer of the run.
        """
        with_gradient = [p for p in parameters if p.grad is not None]
        before = self.before
        shapes = [p.shape for p in parameters]
        if before is None or [kept.shape for kept in before] != shapes:
            return hypergradient(with_gradient, optimizer)
        rows: list[Row] = [(p, {"before": kept}, {}) for p, kept in zip(parameters, before)]
        rows = [row for row in rows if row[0].grad is not None]
        dot, gradient, update, weight = (
            torch.zeros((), device=with_gradient[0].device) for _ in range(4)
        )
        for chunk in _chunks(rows):
            grads = [p.grad.float() for p, _, _ in chunk if p.grad is not None]
            now = [p.detach().float() for p, _, _ in chunk]
            updates = torch._foreach_sub([kept["before"].float() for _, kept, _ in chunk], now)
            dot += torch.stack(
                [torch.dot(g.flatten(), u.flatten()) for g, u in zip(grads, updates)]
            ).sum()
            gradient += _square(grads)
            update += _square(updates)
            weight += _square(now)
        dot, gradient, update, weight = _whole(dot, gradient, update, weight)
        cosine = dot / (gradient.sqrt() * update.sqrt()).clamp_min(1e-30)
        moved = torch.where(update > 0, cosine, math.nan)  # without an update there is no direction
        return moved, update.sqrt() / weight.sqrt().clamp_min(1e-30)


def _has_moments(state: Mapping[str, Any]) -> bool:
    """Return True if the state of a parameter has the moments of Adam, in their own units."""
    return "exp_avg" in state and "exp_avg_sq" in state


def _square(tensors: Sequence[Tensor]) -> Tensor:
    """Return the squared norm of all elements together, 0-d."""
    return torch.stack(torch._foreach_norm(list(tensors))).square().sum()


def _whole(*sums: Tensor) -> tuple[Tensor, ...]:
    """Return sums over elements, completed over the processes if each holds a part of them."""
    if not completes():
        return sums
    return over_shards(torch.stack(sums)).unbind()


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield consecutive rows with at most `_CHUNK` elements; a larger row is a chunk of its own."""
    start = 0
    size = 0
    for end, (parameter, _, _) in enumerate(rows):
        if end > start and size + parameter.numel() > _CHUNK:
            yield rows[start:end]
            start = end
            size = 0
        size += parameter.numel()
    yield rows[start:]
