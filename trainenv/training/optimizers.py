"""Optimizers: our AdamW, and the rates, resets, state and modes of any optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainenv.config.schema import OptimizerConfig
from trainenv.distributed.shards import named_parameters_of
from trainenv.models.spec import spec_of
from trainenv.training.chained_optimizer import ChainedOptimizer
from trainenv.training.copies import Copies
from trainenv.training.optimizer_attributes import (
    attribute_names,
    drop_later_attributes,
    held_optimizers,
    load_attributes,
    saved_attributes,
)
from trainenv.training.snapshots import tensors_of

Rates = Sequence[tuple[float, float]]  # learning rate and weight decay of each parameter group
_OURS = (
    "kind",
    "state",
    "param_groups",
    "attributes",
    "attribute_names",
)  # of a saved state; the rest is what a class of optimizers adds
_INNER = "<inner>"  # among saved attributes: what optimizers inside have of their own
MOMENTS = (
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
)  # of their parameter's shape


_OTHER_MOMENTS = (  # Adafactor, RMSprop and Adagrad, bitsandbytes
    *("row_var", "col_var", "variance", "square_avg", "grad_avg", "sum"),
    *("state1", "state2", "absmax1", "absmax2"),
)


def adamw(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Return a fused AdamW (Loshchilov & Hutter 2019).

    Matrices decay; biases, norms and position embeddings do not.
    """
    groups = decay_groups(model, config.weight_decay)
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups of the trained parameters: those that decay, and the others."""
    spec = spec_of(model)
    named = [(name, p) for name, p in named_parameters_of(model) if p.requires_grad]
    decayed = [p for name, p in named if spec.decays(name, p)]
    kept = [p for name, p in named if not spec.decays(name, p)]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def base_rates(optimizer: Optimizer) -> Rates:
    """Return the learning rate and weight decay of each group.

    With a scheduler attached, they are those from before it changed them.
    """
    return [
        (float(group.get("initial_lr", group["lr"])), float(group.get("weight_decay") or 0.0))
        for group in optimizer.param_groups
    ]


def set_rates(
    optimizer: Optimizer, base: Rates, lr_factor: float, weight_decay_factor: float
) -> None:
    """Write base × factor into the groups.

    It is done anew at every step, so that reloading an optimizer can't undo an intervention.
    """
    for group, (lr, weight_decay) in zip(optimizer.param_groups, base):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * lr_factor)
        else:
            group["lr"] = lr * lr_factor
        if group.get("weight_decay") is not None:
            group["weight_decay"] = weight_decay * weight_decay_factor


def own_rates(optimizer: Optimizer) -> None:
    """Give each group its own learning rate where it is a tensor.

    A tensor that was given to several groups, or runs, would be one for all.
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].clone()


def step(optimizer: Optimizer, scaler: GradScaler, *, skip: Tensor | None = None) -> None:
    """Update the weights, or leave weights and moments as they are.

    Args:
        optimizer: Optimizer whose gradients are ready.
        scaler: Gradient scaler for fp16; a disabled one does nothing.
        skip: Bool tensor, 0-d, that is true to leave the step out; None to take it. It is read on
            the host, except for fused optimizers on a GPU.
    """
    if skip is None:
        scaler.step(optimizer)
    elif skip.is_cuda and not scaler.is_enabled() and _is_fused(optimizer):
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # the kernel reads it
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    elif not bool(skip):
        scaler.step(optimizer)


def _is_fused(optimizer: Optimizer) -> bool:
    """Return True if the kernel of each group can leave a step out by itself."""
    known = type(optimizer) in (Adam, AdamW, SGD)
    return known and all(group.get("fused") for group in optimizer.param_groups)


def has_modes(optimizer: Optimizer) -> bool:
    """Return True if it has `train()` and `eval()`, as schedule-free ones (Defazio 2024)."""
    if isinstance(optimizer, ChainedOptimizer):
        return any(map(has_modes, optimizer.optimizers))
    return callable(getattr(optimizer, "train", None)) and callable(
        getattr(optimizer, "eval", None)
    )


def train(optimizer: Optimizer) -> None:
    """Put an optimizer with modes into training mode."""
    if has_modes(optimizer):
        optimizer.train()  # type: ignore[attr-defined]


@contextmanager
def evaluating(optimizer: Optimizer) -> Iterator[None]:
    """Put an optimizer with modes into evaluation mode inside the block; then restore all bits.

    The optimizer's own way back is rounded, so that an evaluation would change the run.
    """
    if not has_modes(optimizer):
        yield
        return
    kept = [(p, p.detach().clone()) for group in optimizer.param_groups for p in group["params"]]
    marks = _marks(optimizer)
    optimizer.eval()  # type: ignore[attr-defined]
    was_training = marks != _marks(optimizer) or not all(torch.equal(p, bits) for p, bits in kept)
    try:
        yield
    finally:
        if was_training:
            train(optimizer)
        with torch.no_grad():
            for parameter, bits in kept:
                parameter.copy_(bits)


def _marks(optimizer: Optimizer) -> list[bool]:
    """Yield the flags in which an optimizer may note its mode."""
    noted = [
        *vars(optimizer).values(),
        *(value for group in optimizer.param_groups for value in group.values()),
    ]
    return [value for value in noted if isinstance(value, bool)]


def lose_moments(optimizer: Optimizer) -> None:
    """Zero the moments and nothing else.

    A restart without the optimizer's file does the same: the next updates are too large.
    """
    for state in optimizer.state.values():
        for name in (*MOMENTS, *_OTHER_MOMENTS):
            moment = state.get(name)
            # Codes of 8 bits become 0 by their scale, `absmax1` or `absmax2`.
            if isinstance(moment, Tensor) and moment.is_floating_point():
                moment.zero_()


def reset_moments(optimizer: Optimizer) -> None:
    """Zero the moments *and* the step count.

    With the count kept, updates would be about three times too large.
    """
    lose_moments(optimizer)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"].zero_()
        elif "step" in state:
            state["step"] = 0
    for group in optimizer.param_groups:
        if "weight_sum" in group and "k" in group:  # schedule-free: its step count
            group["k"] = 0


def load_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict that went through JSON into the optimizer's own tensors.

    `Optimizer.load_state_dict` keeps the tensors it is given, so it is given the optimizer's own;
    missing ones are cloned. It also casts state to the dtype of the parameters and replaces tensors
    in the groups: both are corrected afterwards.
    """
    copies = Copies()
    live = [(one, one.param_groups, one.state) for one in _with_inner(optimizer)]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[Any, Any] = {}
    with torch.no_grad():
        groups = [
            copies.of(saved, now)
            for now, saved in zip(optimizer.param_groups, state["param_groups"])
        ]
        owners = dict(zip((place for group in groups for place in group["params"]), parameters))
        for key, saved in state["state"].items():
            place = int(key) if str(key).isdigit() else key  # not every key is a parameter's place
            entries[place] = copies.of(saved, optimizer.state.get(owners.get(place, place)))
        rest = {name: copies.of(part, None) for name, part in state.items() if name not in _OURS}
    optimizer.load_state_dict(rest | {"state": entries, "param_groups": groups})
    for one, live_groups, live_state in live:
        _keep_shared(one, live_groups, live_state)
    for loaded, group in zip(optimizer.param_groups, groups):
        loaded.update(
            {name: value for name, value in group.items() if any(True for _ in tensors_of(value))}
        )
    for place, parameter in owners.items():
        loaded = optimizer.state.get(parameter, {})
        for name in entries.get(place, {}).keys() & loaded.keys() - {
            "step"
        }:  # whose dtype depends on `fused` and `capturable`
            loaded[name] = _uncast(entries[place][name], loaded[name])
    saved = state.get("attributes", {})
    if saved:
        now = optimizer.state_dict()["state"]  # an attribute may be a tensor of the state
        copies.follow(state["state"], {str(place): entry for place, entry in now.items()})
    every = _with_inner(optimizer)
    for one, names in zip(every, state.get("attribute_names", ())):
        if names is not None:
            drop_later_attributes(one, names)
    load_attributes(
        optimizer, {name: value for name, value in saved.items() if name != _INNER}, copies
    )
    for inner, part in zip(every[1:], saved.get(_INNER, ())):
        if "state" in part:
            load_state(inner, part)
        elif part:
            load_attributes(inner, part["attributes"], copies)


def kind_of(optimizer: Optimizer) -> str:
    """Return the name of its class; of several in a chain, their names."""
    if isinstance(optimizer, ChainedOptimizer):
        return optimizer.kinds
    return type(optimizer).__name__


def state_of(optimizer: Optimizer) -> dict[str, Any]:
    """Return all that training may change: kind, state dict, attributes, inner optimizers."""
    attributes = saved_attributes(optimizer)
    inner = [_inner_state(optimizer, one) for one in _with_inner(optimizer)[1:]]
    if any(inner):
        attributes[_INNER] = inner
    state = {"kind": kind_of(optimizer), **optimizer.state_dict()}
    if attributes:
        return state | {"attributes": attributes}
    return state


def names_of(optimizer: Optimizer) -> dict[str, Any]:
    """Return the names of all attributes, those of inner optimizers included.

    By them a restore finds attributes that came later. No step depends on them, so they are in no
    fingerprint.
    """
    names = [attribute_names(one) for one in _with_inner(optimizer)]
    if any(found is not None for found in names):
        return {"attribute_names": names}
    return {}


def _inner_state(outer: Optimizer, inner: Optimizer) -> dict[str, Any]:
    """Return the part of an inner state that the outer state dict lacks."""
    attributes = saved_attributes(inner)
    part = {}
    if attributes:
        part = {"attributes": attributes}
    if inner.state is outer.state or type(outer).state_dict is not Optimizer.state_dict:
        return part
    return {"kind": type(inner).__name__, **inner.state_dict(), **part}


def _with_inner(optimizer: Optimizer) -> list[Optimizer]:
    """Yield an optimizer and those around which it is made; they may share groups and state."""
    found = [optimizer]
    for one in found:  # grows meanwhile
        found += [
            inner for inner in held_optimizers(one) if all(inner is not other for other in found)
        ]
    return found


def _keep_shared(optimizer: Optimizer, groups: list[dict[str, Any]], state: Any) -> None:
    """Put loaded values into the existing groups and state, which inner optimizers share."""
    if optimizer.param_groups is not groups and len(optimizer.param_groups) == len(groups):
        for group, loaded in zip(groups, optimizer.param_groups):
            if group is not loaded:
                kept = dict(loaded)
                group.clear()
                group.update(kept)
        optimizer.param_groups = groups
    if optimizer.state is not state:
        entries = list(optimizer.state.items())
        state.clear()
        state.update(entries)
        optimizer.state = state


def _uncast(value: Any, cast: Any) -> Any:
    """Return `cast` with the dtypes of the `value` that it was made from."""
    if isinstance(value, Tensor) and isinstance(cast, Tensor):
        if cast.dtype == value.dtype:
            return cast
        return value.to(cast.device)
    if isinstance(value, dict) and isinstance(cast, dict):
        return {
            name: _uncast(part, cast[name]) if name in cast else part
            for name, part in value.items()
        }
    if isinstance(value, list | tuple) and isinstance(cast, list | tuple):
        return type(cast)(_uncast(part, old) for part, old in zip(value, cast))
    return cast
