"""The benchmark's table: means, intervals over trunks and paired differences, and timings that run."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "planner_speed.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("planners_benchmark", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for annotations
    spec.loader.exec_module(module)
    return module


def test_a_summary_is_paired_and_over_trunks(bench: ModuleType) -> None:
    nan, trunks = math.nan, ["a", "a", "b"]
    regrets = {
        "nothing": [[0.1, 0.2, nan], [0.3, 0.4, nan], [0.5, 0.6, 0.7]],
        "grid": [[0.0, 0.1, nan], [0.2, 0.3, nan], [0.4, 0.5, 0.6]],
    }
    found = {
        name: [{"regret": np.array(row), "futures": 3.0} for row in rows]
        for name, rows in regrets.items()
    }
    table = bench.summary(found, trunks, resamples=200)
    nothing = table["nothing"]
    assert nothing["annealed"]["value"] == pytest.approx(0.4)
    assert nothing["annealed"]["low"] == pytest.approx(0.3)  # a alone
    assert nothing["annealed"]["high"] == pytest.approx(0.6)  # b alone
    assert (nothing["final"]["snapshots"], nothing["final"]["trunks"]) == (1, 1)
    paired = table["grid"]["less_nothing"]["annealed"]
    assert [paired[key] for key in ("value", "low", "high")] == pytest.approx([-0.1] * 3)
    assert table["grid"]["mean_futures"] == 3.0
    shown = bench.shown({"table": table, "snapshots": 3, "trunks": 2, "trunks_of": ["test"]})
    assert "400.00 [300.00,600.00]" in shown


def test_nothing_known_of_the_end_is_no_number(bench: ModuleType) -> None:
    rows = [{"regret": np.array([0.0, 0.0, math.nan])}]
    table = bench.summary({"nothing": rows, "grid": rows}, ["a"], resamples=10)
    assert table["grid"]["final"]["value"] is None
    assert table["grid"]["less_nothing"]["final"]["snapshots"] == 0


@pytest.mark.parametrize("name", ["grid", "random", "bandit", "pbt", "autolrs"])
def test_timings_are_of_whole_plans(bench: ModuleType, name: str) -> None:
    rows = bench.SPEEDS[name](1, None)
    assert rows
    assert all(row["ms"] > 0 for row in rows.values())
