"""The detection benchmark: runs are trained once, and replayed as a loop without a probe would give them."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trainenv import UncertaintyIndex
from trainenv.types import Telemetry

PATH = Path(__file__).parents[2] / "benchmarks" / "detection.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("detection_benchmark", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for annotations
    spec.loader.exec_module(module)
    return module


def measured(steps: int) -> list[Telemetry]:
    return [
        Telemetry(
            step,
            step,
            8,
            3 + 0.1 * math.sin(step**2),
            1 + 0.2 * math.cos(step**2),
            *(1.0, math.inf, 0.0, "none", 0.1, 1.0, 0.1, 1.0, -1, 0.0),
            probe_loss=2.0 + (step == 400) if step % 8 == 0 else math.nan,
            attention_entropy=0.5 + 0.01 * math.sin(step) if step % 8 == 0 else math.nan,
            stressors=("rare_tokens",) if step % 50 == 0 else (),
        )
        for step in range(1, steps + 1)
    ]


def test_a_run_is_trained_once(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event, trained = (
        bench.Planted(at=5, kind="lr_spike", steps=3, size=4.0, rise=0.2, half_at=9),
        [],
    )

    def trial(job: tuple[int, bool]) -> object:
        trained.append(job)
        return bench.Trial(job[0], measured(10), (event,) if job[1] else ())

    monkeypatch.setattr(bench, "trial", trial)
    jobs = [(7, True), (7, False), (8, True)]
    first = list(bench.made(jobs, tmp_path, 1))
    again = list(bench.made(jobs, tmp_path, 1))
    assert trained == jobs
    assert repr(first) == repr(again) == repr([trial(job) for job in jobs])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "7-clean.json",
        "7-events.json",
        "8-events.json",
    ]


def test_readings_are_those_of_a_fresh_index(bench: ModuleType) -> None:
    one = bench.Trial(1, measured(420), ())
    index = UncertaintyIndex(steps=bench.STEPS)
    seen = bench.replayed(one, probe=True).telemetry
    assert [t.reading for t in seen] == [index.update(t) for t in one.telemetry]
    assert max(t.reading.volatility for t in seen[399:]) == 6
    blind = bench.replayed(one, probe=False).telemetry
    assert all(math.isnan(t.probe_loss) and t.reading.entropy == 0 for t in blind)
    index = UncertaintyIndex(steps=bench.STEPS)
    assert [t.reading for t in blind] == [
        index.update(step=t.step, loss=t.loss, grad_norm=t.grad_norm) for t in blind
    ]
