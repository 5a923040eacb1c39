"""How the gradient lies to the last update: the hypergradient of the learning rate, scale-free (Baydin 2018, Adam form)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainenv.config.schema import MonitorConfig

Row = tuple[
    Tensor, dict[str, Any], dict[str, Any]
]  # a parameter, its optimizer state and its group

# warm-ups at the start, in each of which the gradient is compared with the last update so often
_WARM = 3
_WARMUP_LOOKS = 16
# elements handled at a time, so that the temporary copies of a large model stay small
_CHUNK = 2**24


def due(step: int, monitor: MonitorConfig, warmup: int) -> bool:
    """Decide if the gradient of the step after `step` completed ones is compared with the last update."""
    if not (monitor.enabled and monitor.probe_every):
        return False
    every = 2 * monitor.probe_every
    if step < _WARM * warmup:
        every = min(every, max(1, warmup // _WARMUP_LOOKS))
    return step % every == 0


def hypergradient(parameters: Sequence[Tensor], optimizer: Optimizer) -> tuple[Tensor, Tensor]:
    """The cosine cos(g_t, u_{t−1}) and the update ratio η‖u_{t−1}‖ / ‖w‖, as 0-dimensional tensors.

    The sensitivity of the loss to ln η is −η⟨g_t, u_{t−1}⟩ with u the direction that the optimizer
    *subtracted* last: a positive cosine says that a larger learning rate would have done better.
    Call between the backward pass and the optimizer's step: then the moments still are those of the
    last update, and no copy of it need be kept.

    Args:
        parameters: those with a gradient.
        optimizer: an Adam (state `exp_avg`, `exp_avg_sq`, `step`); for another, or before its first
            step, both are NaN.
    """
    device = parameters[0].device
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rows = [(p, optimizer.state.get(p, {}), groups.get(id(p), {})) for p in parameters]
    if not all("exp_avg" in state and "exp_avg_sq" in state for _, state, _ in rows):
        nan = torch.full((), math.nan, device=device)
        return nan, nan
    _, state, group = rows[0]
    steps = torch.as_tensor(state["step"], dtype=torch.float32).to(device)
    (beta1, beta2), eps, lr = group["betas"], group["eps"], group["lr"]
    root = (1 - beta2**steps).sqrt()
    dot, gradient, update, weight = (torch.zeros((), device=device) for _ in range(4))
    for chunk in _chunks(rows):
        grads = [p.grad for p, _, _ in chunk if p.grad is not None]
        # m / (√(v / c) + ε) = √c · m / (√v + ε√c): the scalar √c comes in at the end, which saves a
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
    cosine = dot / (gradient.sqrt() * update.sqrt()).clamp_min(1e-30)
    ratio = lr * root * update.sqrt() / (1 - beta1**steps) / weight.sqrt().clamp_min(1e-30)
    return cosine, ratio


def _square(tensors: Sequence[Tensor]) -> Tensor:
    """The squared norm of tensors taken together."""
    return torch.stack(torch._foreach_norm(list(tensors))).square().sum()


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Consecutive rows of at most `_CHUNK` elements together (a larger single row stands alone)."""
    start = 0
    size = 0
    for end, (parameter, _, _) in enumerate(rows):
        if end > start and size + parameter.numel() > _CHUNK:
            yield rows[start:end]
            start = end
            size = 0
        size += parameter.numel()
    yield rows[start:]
