"""Telemetry kept on the device and read in blocks, so that no step waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainenv.types import Telemetry

OBJECTIVE = "objective/"  # start of the names of numbers that the objective has measured


class Recorder:
    """Collects the values of each step: those of the host, and 0-d tensors that are read later.

    Args:
        agreed: Function that returns the tensor of process 0, if several processes train the model.
    """

    def __init__(self, agreed: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        self._agreed = agreed
        self._host: list[Mapping[str, Any]] = []
        self._device: list[Tensor] = []
        self._names: list[tuple[str, ...]] = []

    def __len__(self) -> int:
        return len(self._host)

    def append(self, host: Mapping[str, Any], device: Mapping[str, Tensor]) -> None:
        """Add a step; nothing is copied or read."""
        self._host.append(host)
        self._names.append(tuple(device))
        self._device.extend(device.values())

    def drain(self) -> Iterator[Telemetry]:
        """Yield the telemetry of the added steps in order, then forget them.

        One copy from the device reads all tensors.
        """
        if not self._host:
            return
        values = iter(
            self._agreed(torch.stack([tensor.float() for tensor in self._device])).tolist()
        )
        host = self._host
        names = self._names
        self._host = []
        self._device = []
        self._names = []
        for known, measured in zip(host, names):
            read: dict[str, Any] = {name: next(values) for name in measured}
            if "tokens" in read:  # counted on the device, as a float
                read["tokens"] = round(read["tokens"])
            numbers = {name: read.pop(name) for name in list(read) if name.startswith(OBJECTIVE)}
            if numbers:
                read["objective"] = {
                    name.removeprefix(OBJECTIVE): value for name, value in numbers.items()
                }
            yield Telemetry(**known, **read)
