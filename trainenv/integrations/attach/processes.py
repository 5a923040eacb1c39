"""Processes that train one model, as an attached run sees them: each watches its own part.

Every process evaluates at the same steps, so that none waits for another. A decision would have to
be taken by all of them at once; so runs of several processes are watched and not steered.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed as dist
from torch import nn

from trainenv.types import UserError


def rank() -> int:
    """Return the number of this process among those that train together, from 0."""
    if _joined():
        return dist.get_rank()
    if size() > 1:
        return _number("RANK", 0)
    return 0


def size() -> int:
    """Return the number of processes that train together; 1 without a launcher."""
    if _joined():
        return dist.get_world_size()
    return _number("WORLD_SIZE", 1)


def own(path: Path) -> Path:
    """Return the path of this process: in process 0 as it is, `name-process-N` in the others."""
    return of_process(path, rank())


def of_process(path: Path, number: int) -> Path:
    """Return the path of a process; see `own`."""
    if number == 0:
        return path
    return path.with_name(f"{path.name}-process-{number}")


def check(model: nn.Module, *, steers: bool) -> None:
    """Check that a model can be watched or steered in this process.

    Args:
        model: Model.
        steers: True if the run is to be steered.

    Raises:
        UserError: Its weights are sharded, or several processes train it and it is to be steered.
    """
    wrapped = any(type(one).__name__ == "FullyShardedDataParallel" for one in model.modules())
    if wrapped or any(hasattr(one, "to_local") for one in model.parameters()):
        raise UserError(
            "the weights must be whole in one process, to be captured and restored, found sharded "
            "ones (FSDP or DTensor); train without it"
        )
    if steers and size() > 1:
        raise UserError(
            f"steering needs a single process, found {size()}; start one, or use mode='watch'"
        )


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        return default
