"""Weights of a run as a part of its state, under plain names.

Buffers that no state dict holds and frozen parameters are included once they change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainenv.training import optimizers, parameter_names
from trainenv.training.copies import Copies
from trainenv.training.snapshots import same_bits


class Weights:
    """Weights of a run as it was built, so that its state holds only what differs.

    Non-persistent buffers and frozen parameters are in the state if they have changed: most are
    constants.

    Args:
        model: Model before the first step.
        optimizer: Optimizer of its parameters.
        objective: Loss, a module or any function.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, objective: object) -> None:
        self._buffers = {name: _cloned(buffer) for name, _, _, buffer in _unsaved(model, objective)}
        self._frozen = _frozen(optimizer)

    def state(self, model: nn.Module, optimizer: Optimizer, objective: object) -> dict[str, Any]:
        """Return the weights' part of a run's state, without copies."""
        state: dict[str, Any] = {"model": parameter_names.state_of(model)}
        changed = {
            name: buffer
            for name, _, _, buffer in _unsaved(model, objective)
            if name not in self._buffers or not _same(buffer, self._buffers[name])
        }
        frozen = _frozen(optimizer)
        return (
            state
            | ({"buffers": changed} if changed else {})
            | ({"frozen": frozen} if frozen != self._frozen else {})
        )

    def load(
        self, model: nn.Module, optimizer: Optimizer, objective: object, state: Mapping[str, Any]
    ) -> None:
        """Restore what `state` returned, of this run or of one built alike.

        None of its tensors are kept.
        """
        live = parameter_names.state_of(model)
        live.update(
            Copies().of(parameter_names.fitted(model, state["model"]), live)
        )  # which has written the weights
        parameter_names.load_state(model, live)  # runs the model's hooks
        saved = self._buffers | state.get("buffers", {})
        for name, module, key, buffer in _unsaved(model, objective):
            if name in saved and not _same(buffer, saved[name]):
                _write(module, key, saved[name])
        frozen = state.get("frozen", self._frozen)
        for place, parameter in enumerate(_parameters(optimizer)):
            if parameter.requires_grad is (place in frozen):
                parameter.requires_grad_(place not in frozen)


def evaluated(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the weights that differ in evaluation, under plain names; none for most optimizers."""
    if not optimizers.has_modes(optimizer):
        return {}
    trained = {
        name: _cloned(value)
        for name, value in parameter_names.state_of(model).items()
        if isinstance(value, Tensor)
    }
    with optimizers.evaluating(optimizer):
        now = parameter_names.state_of(model)
        return {
            name: now[name].detach().clone()
            for name, value in trained.items()
            if not _same(now[name], value)
        }


def _unsaved(
    model: nn.Module, objective: object
) -> Iterator[tuple[str, nn.Module, str, Tensor | None]]:
    """Yield each non-persistent buffer: its name, its module, its name there, and itself."""
    for where, root in (("model", model), ("objective", objective)):
        for above, module in root.named_modules() if isinstance(root, nn.Module) else ():
            for key in sorted(module._non_persistent_buffers_set):
                path = f"{above}.{key}" if above else key
                name = parameter_names.plain(root, path)  # type: ignore[arg-type]
                yield f"{where}.{name}", module, key, module._buffers.get(key)


def _write(module: nn.Module, key: str, saved: Tensor | None) -> None:
    live = module._buffers.get(key)
    fits = (
        live is not None
        and saved is not None
        and live.shape == saved.shape
        and live.dtype == saved.dtype
    )
    if fits and live.is_contiguous():  # type: ignore[union-attr]
        with torch.no_grad():
            live.copy_(saved)  # type: ignore[union-attr, arg-type]
    else:
        device = next(
            (tensor.device for tensor in (live, *module.parameters()) if tensor is not None), None
        )
        module._buffers[key] = None if saved is None else saved.to(device, copy=True)


def _frozen(optimizer: Optimizer) -> list[int]:
    """Return the places, in the optimizer's state dict, of the frozen parameters."""
    return [
        place
        for place, parameter in enumerate(_parameters(optimizer))
        if not parameter.requires_grad
    ]


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _cloned(value: Tensor | None) -> Tensor | None:
    if value is None:
        return None
    return value.detach().clone()


def _same(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return same_bits(one.detach(), two.to(one.device))
