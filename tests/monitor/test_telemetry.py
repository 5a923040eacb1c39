"""Telemetry stays on the device and comes over in one copy, in order."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trainenv.monitor.recorder import Recorder
from trainenv.types import Telemetry

HOST: dict[str, Any] = {
    "data_index": 0,
    "tokens": 8,
    "clip": "none",
    "lr": 0.1,
    "lr_scale": 1.0,
    "weight_decay": 0.1,
    "weight_decay_scale": 1.0,
    "steps_since_reset": -1,
    "progress": 0.0,
}


def device(step: int, **more: float) -> dict[str, Tensor]:
    names = ("loss", "grad_norm", "grad_norm_clipped", "clip_threshold", "clip_score")
    return {name: torch.tensor(float(step * 10 + place)) for place, name in enumerate(names)} | {
        k: torch.tensor(v) for k, v in more.items()
    }


def test_in_order_with_what_each_step_measured() -> None:
    recorder = Recorder()
    recorder.append({**HOST, "step": 1}, device(1))
    recorder.append(
        {**HOST, "step": 2, "stressors": ("artefacts",)},
        device(2, probe_loss=5.5, update_ratio=0.25),
    )
    recorder.append({**HOST, "step": 3}, dict(reversed(device(3).items())))
    assert len(recorder) == 3
    drained = list(recorder.drain())
    assert len(recorder) == 0
    assert list(recorder.drain()) == []
    assert [t.step for t in drained] == [1, 2, 3]
    assert [
        (t.loss, t.grad_norm, t.grad_norm_clipped, t.clip_threshold, t.clip_score) for t in drained
    ] == [tuple(float(step * 10 + place) for place in range(5)) for step in (1, 2, 3)]
    assert [t.stressors for t in drained] == [(), ("artefacts",), ()]
    assert (drained[1].probe_loss, drained[1].update_ratio) == (5.5, 0.25)
    assert math.isnan(drained[0].probe_loss)
    assert math.isnan(drained[2].update_ratio)


def test_python_numbers_whatever_the_dtype() -> None:
    recorder = Recorder()
    values = {
        **device(1),
        "loss": torch.tensor(1.5, dtype=torch.bfloat16),
        "grad_norm": torch.tensor(2.5, dtype=torch.float64),
    }
    recorder.append(
        {**HOST, "step": 1},
        {**values, "clip_score": torch.tensor(math.nan), "clip_threshold": torch.tensor(math.inf)},
    )
    (t,) = recorder.drain()
    assert (type(t.loss), t.loss, t.grad_norm, t.clip_threshold) == (float, 1.5, 2.5, math.inf)
    assert math.isnan(t.clip_score)


def test_appending_reads_nothing_and_draining_reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def counted(name: str) -> None:
        original = getattr(Tensor, name)

        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            reads.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, read)

    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__"):
        counted(name)
    recorder = Recorder()
    for step in range(20):
        recorder.append({**HOST, "step": step}, device(step))
    assert reads == []
    assert len(list(recorder.drain())) == 20
    assert reads == ["tolist"]


def test_steps_appended_while_draining_are_kept() -> None:
    recorder = Recorder()
    recorder.append({**HOST, "step": 1}, device(1))
    recorder.append({**HOST, "step": 2}, device(2))
    drained: list[Telemetry] = []
    for telemetry in recorder.drain():
        drained.append(telemetry)
        if telemetry.step == 1:
            recorder.append({**HOST, "step": 3}, device(3))
    assert [t.step for t in drained] == [1, 2]
    assert [t.step for t in recorder.drain()] == [3]


@pytest.mark.parametrize(
    ("norm", "seen", "clipped"),
    [
        (1.0, 1.0, False),
        (2.0, 1.0, True),
        (math.nan, 1.0, True),
        (math.inf, 0.0, True),
        (1.0 + 1e-8, 1.0, False),
    ],
)
def test_clipped(norm: float, seen: float, clipped: bool) -> None:
    measured = {name: value.item() for name, value in device(0).items()} | {
        "grad_norm": norm,
        "grad_norm_clipped": seen,
    }
    assert Telemetry(**HOST, step=1, **measured).clipped is clipped
