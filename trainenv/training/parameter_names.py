"""Plain names of weights, whatever wraps the model.

`torch.compile`, `DataParallel` and DDP each lengthen the names. With plain ones a snapshot, a file
and another run fit whether the model is wrapped or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from trainenv.distributed.shards import is_sharded, local_part, shard_of


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return the model's state dict under plain names; of a sharded tensor the local part."""
    return {plain(model, name): _local(value) for name, value in model.state_dict().items()}


def whole_state_of(model: nn.Module) -> dict[str, Any]:
    """Return the model's state dict under plain names; sharded tensors have their whole shape."""
    return {plain(model, name): value for name, value in model.state_dict().items()}


def load_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict with plain names.

    Of a sharded model, whole tensors are written into its parts; given parts are its own already.
    """
    if is_sharded(model):
        for name, whole in model.state_dict().items():
            given = state[plain(model, name)]
            if hasattr(whole, "to_local") and given.shape == whole.shape:
                whole.to_local().copy_(local_part(given, whole))
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


def layout(model: nn.Module, optimizer: Optimizer) -> list[list[Any]]:
    """Return the plain name and the whole shape of each parameter, in the optimizer's order."""
    known = {
        id(shard_of(p)): [plain(model, name), list(p.shape)] for name, p in model.named_parameters()
    }
    every = [p for group in optimizer.param_groups for p in group["params"]]
    return [known.get(id(p), ["", list(p.shape)]) for p in every]


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
