"""The monitor of a training run: all measurements that it makes while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from trainenv.config.schema import MonitorConfig
from trainenv.monitor.last_values import Statistics
from trainenv.monitor.probe import Probe
from trainenv.monitor.recorder import Recorder
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.types import Telemetry


class Monitor:
    """The recorder of the steps of a run, with its probe, its statistics and its index.

    Args:
        config: Settings of the monitor: steps between probes, thresholds of the index.
        steps: Budget of the run in optimizer steps.
        probe: Probe of the model; None to measure training alone.
        agreed: Function that returns the tensor of process 0, if several processes train the model.

    Attributes:
        index: Uncertainty index, fed with each step that is read.
        statistics: Last values, as checkpoints show them.
        probe: Probe of the model; None without one.
    """

    def __init__(
        self,
        config: MonitorConfig,
        *,
        steps: int,
        probe: Probe | None,
        agreed: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self._config = config
        self.agreed = agreed
        self._recorder = Recorder(agreed)
        self.index = UncertaintyIndex(config.uncertainty, steps=steps)
        self.statistics = Statistics()
        self.probe = probe

    def probes(self, step: int) -> bool:
        """Return True if the step after `step` completed ones ends with a probe."""
        return self.probe is not None and step % self._config.probe_every == 0

    def measure(self) -> dict[str, Tensor]:
        """Probe the model; the values stay on its device."""
        assert self.probe is not None
        measured = self.probe.measure()
        self.statistics.activations = self.probe.activations
        return measured

    def append(self, known: Mapping[str, Any], measured: Mapping[str, Tensor]) -> None:
        """Record a step: values known on the host, and tensors that are still on the device."""
        self._recorder.append(known, measured)

    def read(self) -> list[Telemetry]:
        """Return the steps recorded since the last read, each with its reading of the index."""
        return [self._with_reading(telemetry) for telemetry in self._recorder.drain()]

    def forget_unread(self) -> None:
        """Drop recorded steps that were not read, because one of them did not end."""
        self._recorder = Recorder(self.agreed)

    def _with_reading(self, telemetry: Telemetry) -> Telemetry:
        self.statistics.update(telemetry)
        if not self._config.enabled:
            return telemetry
        return replace(telemetry, reading=self.index.update(telemetry))
