"""The last measurements of a run: the few numbers that a checkpoint stores about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainenv.types import Telemetry

_EVERY_STEP = ("loss", "grad_norm")
_MOMENTS = ("activation_mean", "activation_std")
_PROBED = ("probe_loss", "attention_entropy", "activation_entropy")


class Statistics:
    """The last value of each measurement; None if it was never measured or is not finite.

    Attributes:
        activations: Mean and standard deviation of the output of each block of the model at the
            last probe, [blocks, 2]. It stays on the device, so that no step waits for it.
        non_finite: Number of consecutive steps, up to the last, with a non-finite loss and no
            finite probe loss.
    """

    def __init__(self) -> None:
        self._newest: dict[str, float | None] = dict.fromkeys((*_EVERY_STEP, *_PROBED))
        self.activations: Tensor | None = None
        self.non_finite = 0

    def update(self, telemetry: Telemetry) -> None:
        """Take in one more step."""
        for name in _EVERY_STEP:
            self._newest[name] = _finite(getattr(telemetry, name))
        for name in _PROBED:
            if not math.isnan(value := getattr(telemetry, name)):
                self._newest[name] = _finite(value)
        self.non_finite += 1
        if math.isfinite(telemetry.loss) or math.isfinite(telemetry.probe_loss):
            self.non_finite = 0

    @property
    def loss(self) -> float | None:
        """Training loss of the last step, nats per token; None without a finite one."""
        return self._newest["loss"]

    def state_dict(self) -> dict[str, Any]:
        """Return strict JSON values, the activations as two lists over the blocks."""
        state: dict[str, Any] = dict(self._newest)
        if self.non_finite:
            state["non_finite"] = self.non_finite
        state |= dict.fromkeys(_MOMENTS)
        if self.activations is not None:
            for name, column in zip(_MOMENTS, self.activations.T.tolist(), strict=True):
                state[name] = [_finite(value) for value in column]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state that `state_dict` returned."""
        self._newest = {name: state[name] for name in self._newest}
        self.non_finite = int(state.get("non_finite", 0))
        self.activations = None
        if state["activation_mean"] is not None:
            columns = [_floats(state[name]) for name in _MOMENTS]
            self.activations = torch.tensor(columns, dtype=torch.float32).T


def _finite(value: float) -> float | None:
    if math.isfinite(value):
        return value
    return None


def _floats(column: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in column]
