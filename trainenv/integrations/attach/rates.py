"""Learning rates of somebody else's schedule, and our factor on them.

A scheduler may compute a rate from the one before it, so our factor must never be seen by it. The
factor is therefore in force during the step of the optimizer alone; then each group has the
scheduler's own value back. Where the factor is 1 nothing is written.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

_MOST = 1_000_000  # steps of a schedule that are computed one by one
_BY_METRIC = ("ReduceLROnPlateau", "GreedyLR")  # schedulers whose rates no one knows ahead


class RatesInForce:
    """Factors that are in force during a step of the optimizers.

    Args:
        optimizers: Optimizers.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers
        self._kept: list[tuple[dict[str, Any], str, Any]] = []

    @property
    def scheduled(self) -> float:
        """Learning rate of the first group, as the scheduler has set it."""
        for group, name, value in self._kept:
            if name == "lr" and group is self._optimizers[0].param_groups[0]:
                return float(value)
        return float(self._optimizers[0].param_groups[0]["lr"])

    @property
    def weight_decay(self) -> float:
        """Weight decay of the first group, as it was configured."""
        for group, name, value in self._kept:
            if name == "weight_decay" and group is self._optimizers[0].param_groups[0]:
                return float(value)
        return float(self._optimizers[0].param_groups[0].get("weight_decay") or 0.0)

    def put(self, *, lr: float, weight_decay: float) -> None:
        """Put factors in force, before the optimizers take a step."""
        self.give_back()
        for name, factor in (("lr", lr), ("weight_decay", weight_decay)):
            if factor == 1.0:
                continue
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    if group.get(name) is not None:
                        self._scale(group, name, factor)

    def give_back(self) -> None:
        """Restore the values from before `put`, after the step."""
        for group, name, value in self._kept:
            if isinstance(group[name], Tensor):
                group[name].copy_(value)
            else:
                group[name] = value
        self._kept = []

    def _scale(self, group: dict[str, Any], name: str, factor: float) -> None:
        value = group[name]
        if isinstance(value, Tensor):
            self._kept.append((group, name, value.clone()))
            value.mul_(factor)
        else:
            self._kept.append((group, name, value))
            group[name] = value * factor


def scheduled_rates(schedulers: Sequence[Any], optimizer: Optimizer, steps: int) -> list[float]:
    """Return the learning rate of the first group for each step, from now on.

    The schedulers of the optimizer are run ahead on an optimizer without weights. Without one, or
    with one that follows a metric, the rate stays as it is.

    Args:
        schedulers: Schedulers; each is stepped once a step.
        optimizer: Optimizer whose rates they set.
        steps: Number of steps.
    """
    now = float(optimizer.param_groups[0]["lr"])
    own = [inner(one) for one in schedulers]
    own = [one for one in own if inner(getattr(one, "optimizer", None)) is inner(optimizer)]
    if not own or steps > _MOST or any(type(one).__name__ in _BY_METRIC for one in own):
        return [now] * steps
    stand_in = _without_weights(optimizer)
    rates = []
    try:
        ahead = [_on(one, stand_in) for one in own]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a scheduler misses the steps of the optimizer
            for _ in range(steps):
                rates.append(float(stand_in.param_groups[0]["lr"]))
                for one in ahead:
                    one.step()
    except Exception:  # a scheduler of the user's own that can't be copied or run ahead
        return [now] * steps
    return rates


def warmup_of(rates: Sequence[float]) -> int:
    """Return the number of steps over which a schedule rises to its peak; 0 if it does not."""
    peak = max(range(len(rates)), key=rates.__getitem__, default=0)
    rises = all(rates[step] <= rates[step + 1] for step in range(peak))
    if rises and rates and rates[0] < rates[peak] and peak < 0.5 * len(rates):
        return peak
    return 0


def at(rates: Sequence[float], step: float) -> float:
    """Return the rate at a step between two steps, interpolated."""
    low = min(max(math.floor(step), 0), len(rates) - 1)
    high = min(low + 1, len(rates) - 1)
    share = min(max(step - low, 0.0), 1.0)
    return rates[low] + share * (rates[high] - rates[low])


def inner(wrapped: Any) -> Any:
    """Return the scheduler or optimizer inside a wrapper of a framework."""
    for name in ("scheduler", "optimizer"):
        held = getattr(wrapped, name, None)
        same_kind = hasattr(held, "state_dict") and hasattr(held, "step")
        if type(wrapped).__name__.startswith("Accelerated") and same_kind:
            return held
    return wrapped


def _without_weights(optimizer: Optimizer) -> Optimizer:
    groups = []
    for group in inner(optimizer).param_groups:
        settings = {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        groups.append({"params": [torch.zeros(())], **settings})
    stand_in = SGD([{"params": group.pop("params"), "lr": 1.0} for group in groups])
    for made, group in zip(stand_in.param_groups, groups):
        made.update(group)
    return stand_in


def _on(scheduler: Any, stand_in: Optimizer) -> Any:
    """Return a copy of a scheduler on another optimizer."""
    memo = {id(one): stand_in for one in (scheduler.optimizer, inner(scheduler.optimizer))}
    return copy.deepcopy(scheduler, memo)
