"""Telemetry kept on the device and read in blocks: a step never waits for the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainenv.types import Telemetry


class Recorder:
    """Collects, a step at a time, what is known on the host and 0-dimensional tensors that are not read yet."""

    def __init__(self) -> None:
        self._host: list[Mapping[str, Any]] = []
        self._device: list[Tensor] = []
        self._names: list[tuple[str, ...]] = []

    def __len__(self) -> int:
        return len(self._host)

    def append(self, host: Mapping[str, Any], device: Mapping[str, Tensor]) -> None:
        """Remember a step. Nothing is copied or read."""
        self._host.append(host)
        self._names.append(tuple(device))
        self._device.extend(device.values())

    def drain(self) -> Iterator[Telemetry]:
        """The telemetry of the remembered steps, in order, through one copy from the device; then forget them."""
        if not self._host:
            return
        values = iter(
            torch.stack(
                [t if t.dtype == torch.float32 else t.float() for t in self._device]
            ).tolist()
        )
        host = self._host
        names = self._names
        self._host = []
        self._device = []
        self._names = []
        for known, measured in zip(host, names):
            read = {name: next(values) for name in measured}
            if "tokens" in read:  # counted on the device
                read["tokens"] = round(read["tokens"])
            yield Telemetry(**known, **read)
