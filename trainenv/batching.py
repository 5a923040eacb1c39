"""Whatever a user's data callable returns ↔ the micro-batches of one step, on the run's device."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

import torch
from torch import Tensor

from trainenv.snapshots import tensors_of
from trainenv.types import Batch, UserError


def as_batch(data: Any, index: int, accumulation: int) -> Batch:
    """`data` as a `Batch`: one already, one micro-batch, a tensor to cut up, or a sequence of micro-batches."""
    if isinstance(data, Batch):
        return data
    if accumulation == 1:
        return Batch(micro=(data,), index=index)
    if isinstance(data, Tensor) and data.dim() and len(data) % accumulation == 0:
        return Batch(micro=data.chunk(accumulation), index=index)
    if isinstance(data, list | tuple) and len(data) == accumulation:
        return Batch(micro=tuple(data), index=index)
    length = "" if (isinstance(data, Tensor) and not data.dim()) or not isinstance(data, Sized) else f" of length {len(data)}"
    raise UserError(
        f"with accumulation {accumulation}, batches(index) must return a tensor of a multiple of {accumulation} rows, or a "
        f"sequence of {accumulation} micro-batches; found {type(data).__name__}{length}"
    )


def placed(micro: Any, device: torch.device) -> Any:
    """A micro-batch with its tensors on `device`."""
    if isinstance(micro, Tensor):
        return micro if micro.device == device else micro.to(device, non_blocking=True)
    if isinstance(micro, Mapping):
        return {key: placed(part, device) for key, part in micro.items()}
    if isinstance(micro, list | tuple):
        parts = [placed(part, device) for part in micro]
        return type(micro)(*parts) if hasattr(micro, "_fields") else type(micro)(parts)
    return micro


def token_count(micro: Any) -> int:
    """Tokens predicted in a micro-batch: those of its first integer tensor, less one a row."""
    tensor = next((t for t in tensors_of(micro) if not t.is_floating_point()), None)
    if tensor is None or tensor.dim() < 2:
        return 0 if tensor is None else tensor.numel()
    return tensor.shape[0] * (tensor.shape[1] - 1)
