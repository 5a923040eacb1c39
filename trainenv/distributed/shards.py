"""Sums over tensors of which each process holds a part, and the parts themselves.

Inside `completed`, `over_shards` adds the sums of all processes, so that norms are those of whole
tensors. Outside it, and in a run of one process, it returns its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_SHARD = "_trainenv_shard"  # attribute of a sharded parameter: its local part
_complete: list[Callable[[Tensor], Tensor]] = []  # the innermost block's function is the last


@contextmanager
def completed(total: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Complete sums inside the block.

    Args:
        total: Function that returns the sum of a tensor over the processes.
    """
    _complete.append(total)
    try:
        yield
    finally:
        _complete.pop()


def completes() -> bool:
    """Return True inside a block of `completed`."""
    return bool(_complete)


def over_shards(partial: Tensor) -> Tensor:
    """Return a sum over elements, completed over the processes that hold the other elements."""
    if not _complete:
        return partial
    return _complete[-1](partial)


def set_shard(parameter: Tensor, shard: nn.Parameter) -> None:
    """Note the local part of a sharded parameter."""
    setattr(parameter, _SHARD, shard)


def shard_of(parameter: Any) -> Any:
    """Return the local part of a sharded parameter; any other value is returned unchanged."""
    return getattr(parameter, _SHARD, parameter)


def local_part(whole: Tensor, like: Any) -> Tensor:
    """Return the part of a whole tensor that this process holds of a sharded one.

    Args:
        whole: Tensor of the whole shape.
        like: Sharded tensor, cut along its first dimension.
    """
    mesh = like.device_mesh
    parts = whole.chunk(mesh.size())
    rank: int = mesh.get_local_rank()
    if rank >= len(parts):
        return whole[:0]
    part: Tensor = parts[rank]
    return part


def is_sharded(model: nn.Module) -> bool:
    """Return True if each process holds a part of the model's parameters."""
    return any(hasattr(parameter, _SHARD) for parameter in model.parameters())


def parameters_of(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that an optimizer updates: of sharded ones the local parts."""
    for parameter in model.parameters():
        yield shard_of(parameter)


def named_parameters_of(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter as `parameters_of` does."""
    for name, parameter in model.named_parameters():
        yield name, shard_of(parameter)
