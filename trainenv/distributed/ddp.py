"""Data parallelism with a whole model in each process: DistributedDataParallel of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainenv.distributed.group import Group, lost_in_sentences
from trainenv.distributed.processes import Processes


class Replicas(Processes):
    """Processes that each hold the whole model; gradients are averaged over them.

    Args:
        group: Processes of the run.
    """

    kind = "ddp"

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rank = group.rank
        self.size = group.size
        self._wrapped: tuple[nn.Module, DistributedDataParallel] | None = None

    def trained_form(self, model: nn.Module) -> nn.Module:
        """See `Processes`."""
        if self.size == 1:
            return model
        if self._wrapped is None or self._wrapped[0] is not model:
            with lost_in_sentences():
                wrapped = DistributedDataParallel(model, process_group=self.group.steps)
            self._wrapped = (model, wrapped)
        return self._wrapped[1]

    @contextmanager
    def syncing(self, model: nn.Module, now: bool) -> Iterator[None]:
        """See `Processes`."""
        with lost_in_sentences():
            if now or self.size == 1:
                yield
                return
            wrapped: Any = self.trained_form(model)
            with wrapped.no_sync():
                yield

    def recover(self, model: nn.Module) -> None:
        """See `Processes`. A wrapper that waits for the rest of a step can't begin another."""
        self._wrapped = None

    def total(self, value: Tensor) -> Tensor:
        """See `Processes`."""
        return self.group.sum(value)

    def agreed(self, value: Tensor) -> Tensor:
        """See `Processes`."""
        return self.group.first(value)

    def fingerprint(self, own: str) -> str:
        """See `Processes`. Each process has random numbers of its own, so all hashes count."""
        return self.group.fingerprint(own)

    def settings(self) -> dict[str, Any]:
        """See `Processes`."""
        return {
            "distributed": self.kind,
            "processes": self.size,
            "reduction": "mean over processes in float32",
        }
