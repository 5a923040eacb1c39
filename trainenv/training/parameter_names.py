"""Plain names of weights, whatever wraps the model.

`torch.compile`, `DataParallel` and DDP each lengthen the names. With plain ones a snapshot, a file
and another run fit whether the model is wrapped or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from trainenv.distributed.shards import is_sharded


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return the model's state dict under plain names; of a sharded tensor the local part."""
    return {plain(model, name): _local(value) for name, value in model.state_dict().items()}


def load_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict with plain names.

    The local parts of a sharded model have been written into already, and its hooks gather them.
    """
    if is_sharded(model):
        return
    model.load_state_dict({name: state[plain(model, name)] for name in model.state_dict()})


def plain(model: nn.Module, name: str) -> str:
    """Return a name in the model's state dict without the parts that wrappers add."""
    parts = []
    module = model
    for part in name.split("."):
        if _wrapped_name(module) != part:
            parts.append(part)
        module = getattr(module, "_modules", {}).get(part)  # type: ignore[assignment]
    return ".".join(parts)


def fitted(model: nn.Module, state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a foreign state dict under plain names, as far as they are the model's.

    A wrapped or compiled model may have saved it.
    """
    own = {name: plain(model, name) for name in model.state_dict()}
    short = {name: own.get(name) or str(name).replace("_orig_mod.", "") for name in state}
    plain_names = set(own.values())
    return {
        name if name in plain_names or short[name] not in plain_names else short[name]: part
        for name, part in state.items()
    }


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside its wrappers."""
    while inner := _wrapped_name(model):
        model = getattr(model, inner)
    return model


def _local(value: Any) -> Any:
    """Return the local part of a sharded tensor; any other value is returned unchanged."""
    if hasattr(value, "to_local"):
        return value.to_local()
    return value


def _wrapped_name(module: object) -> str | None:
    """Return the attribute in which a wrapper holds its module; None for other modules."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        return "module"
    return (
        "_orig_mod" if type(module).__name__ == "OptimizedModule" else None
    )  # its class is slow to import
