"""Data parallelism with a part of the model in each process: FSDP2 (`fully_shard`) of torch.

Torch holds each parameter as a DTensor, and gathers it where it is used. The optimizer, clip
policies and snapshots of a run work on the local parts, which are plain tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainenv.distributed.group import Group, lost_in_sentences
from trainenv.distributed.processes import Processes
from trainenv.distributed.shards import completed, set_shard


class Shards(Processes):
    """Processes that each hold a part of every parameter, cut along its first dimension.

    Args:
        group: Processes of the run.
        device: Device of the run.
    """

    kind = "fsdp2"
    same_state = False

    def __init__(self, group: Group, device: torch.device) -> None:
        self.group = group
        self.rank = group.rank
        self.size = group.size
        self._device = device
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []  # of torch, and its local part

    def prepare(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """See `Processes`. Each block is gathered by itself, then what is outside of the blocks."""
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        with lost_in_sentences():
            mesh = DeviceMesh.from_group(self.group.steps, self._device.type)
            for module in (*blocks, model):
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
        for parameter in model.parameters():
            whole: Any = parameter
            local = nn.Parameter(whole.to_local().detach(), requires_grad=whole.requires_grad)
            set_shard(parameter, local)
            self._pairs.append((parameter, local))

    @contextmanager
    def syncing(self, model: nn.Module, now: bool) -> Iterator[None]:
        """See `Processes`."""
        sharded: Any = model
        sharded.set_requires_gradient_sync(now)
        with lost_in_sentences():
            yield

    def collect(self, parameters: Sequence[Tensor]) -> None:
        """See `Processes`."""
        for parameter, local in self._pairs:
            gradient: Any = parameter.grad
            if gradient is not None:
                local.grad = gradient.to_local()
                parameter.grad = None

    def recover(self, model: nn.Module) -> None:
        """See `Processes`."""
        sharded: Any = model
        sharded.reset_iter_state()

    @contextmanager
    def over_shards(self) -> Iterator[None]:
        """See `Processes`."""
        with completed(self.group.sum):
            yield

    def total(self, value: Tensor) -> Tensor:
        """See `Processes`."""
        return self.group.sum(value)

    def agreed(self, value: Tensor) -> Tensor:
        """See `Processes`."""
        return self.group.first(value)

    def fingerprint(self, own: str) -> str:
        """See `Processes`."""
        return self.group.fingerprint(own)

    def settings(self) -> dict[str, Any]:
        """See `Processes`."""
        return {
            "distributed": self.kind,
            "processes": self.size,
            "reduction": "mean over processes in float32, by block",
        }
