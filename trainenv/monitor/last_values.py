"""The newest measurements of a run: the few numbers that a checkpoint tells of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainenv.types import Telemetry

_EVERY_STEP = ("loss", "grad_norm")
_PROBED = ("probe_loss", "attention_entropy", "activation_entropy")


class Statistics:
    """The newest of each measurement.

    `None` stands for what was never measured, or was not a finite number.

    Attributes:
        activations: [blocks, 2], mean and standard deviation of what each block of the model puts
            out, from the newest look at it; stays on the device, so that no step waits for it.
        non_finite: steps in a row, up to the newest, whose loss was not finite and after which no
            look at clean data was.
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
        sound = math.isfinite(telemetry.loss) or math.isfinite(telemetry.probe_loss)
        self.non_finite = 0 if sound else self.non_finite + 1

    def state_dict(self) -> dict[str, Any]:
        """As strict JSON values; the activations as one list over the blocks each."""
        means, deviations = (
            (None, None) if self.activations is None else self.activations.T.tolist()
        )
        return {
            **self._newest,
            **({"non_finite": self.non_finite} if self.non_finite else {}),
            "activation_mean": means and [_finite(mean) for mean in means],
            "activation_std": deviations and [_finite(deviation) for deviation in deviations],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._newest = {name: state[name] for name in self._newest}
        self.non_finite = int(state.get("non_finite", 0))
        columns = [state["activation_mean"], state["activation_std"]]
        known = [
            [math.nan if value is None else value for value in column or ()] for column in columns
        ]
        self.activations = (
            None if columns[0] is None else torch.tensor(known, dtype=torch.float32).T
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
