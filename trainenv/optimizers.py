"""The optimizer: AdamW as we make it, and what any optimizer must let us do: set its rates, reset it, load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from trainenv.config import OptimizerConfig
from trainenv.copies import Copies
from trainenv.snapshots import tensors_of

Rates = Sequence[tuple[float, float]]  # learning rate and weight decay of each parameter group
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # of their parameter's shape


def adamw(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Fused AdamW (Loshchilov & Hutter 2019); matrices decay; biases, norms and position embeddings don't."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.dim() >= 2 and "wpe" not in name]
    kept = [p for name, p in named if p.dim() < 2 or "wpe" in name]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def base_rates(optimizer: Optimizer) -> Rates:
    """The rates that an optimizer holds now."""
    return [(float(group["lr"]), float(group.get("weight_decay", 0.0))) for group in optimizer.param_groups]


def set_rates(optimizer: Optimizer, base: Rates, lr_factor: float, weight_decay_factor: float) -> None:
    """Write base × factor into the groups, every step anew: nothing that reloads an optimizer can undo an intervention."""
    for group, (lr, weight_decay) in zip(optimizer.param_groups, base):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * lr_factor)
        else:
            group["lr"] = lr * lr_factor
        if "weight_decay" in group:
            group["weight_decay"] = weight_decay * weight_decay_factor


def lose_moments(optimizer: Optimizer) -> None:
    """Zero the moments and nothing else, as a restart without the optimizer's file does: the next updates are too large."""
    for state in optimizer.state.values():
        for name in MOMENTS:
            if isinstance(state.get(name), Tensor):
                state[name].zero_()


def reset_moments(optimizer: Optimizer) -> None:
    """Zero the moments *and* Adam's step count: with the count kept, updates would be about three times too large."""
    lose_moments(optimizer)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"].zero_()
        elif "step" in state:
            state["step"] = 0


def load_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict that went through JSON, into the tensors that the optimizer has; what it lacks is cloned.

    `Optimizer.load_state_dict` keeps the very tensors it is given, so it is given the optimizer's own. It also casts state to
    the dtype of the parameters and makes new tensors of those in the groups: both are put right after it.
    """
    copies = Copies()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[Any, Any] = {}
    with torch.no_grad():
        groups = [copies.of(saved, live) for live, saved in zip(optimizer.param_groups, state["param_groups"])]
        owners = dict(zip((place for group in groups for place in group["params"]), parameters))
        for key, saved in state["state"].items():
            place = int(key) if str(key).isdigit() else key  # not every key is a parameter's place
            entries[place] = copies.of(saved, optimizer.state.get(owners.get(place, place)))
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    for loaded, group in zip(optimizer.param_groups, groups):
        loaded.update({name: value for name, value in group.items() if any(True for _ in tensors_of(value))})
    for place, parameter in owners.items():
        loaded = optimizer.state.get(parameter, {})
        for name in entries.get(place, {}).keys() & loaded.keys() - {"step"}:  # whose dtype depends on `fused` and `capturable`
            loaded[name] = _uncast(entries[place][name], loaded[name])


def _uncast(value: Any, cast: Any) -> Any:
    """`cast` as it was loaded, with the dtypes of the `value` that it was made from."""
    if isinstance(value, Tensor) and isinstance(cast, Tensor):
        return cast if cast.dtype == value.dtype else value.to(cast.device)
    if isinstance(value, dict) and isinstance(cast, dict):
        return {name: _uncast(part, cast[name]) if name in cast else part for name, part in value.items()}
    if isinstance(value, list | tuple) and isinstance(cast, list | tuple):
        return type(cast)(_uncast(part, old) for part, old in zip(value, cast))
    return cast
