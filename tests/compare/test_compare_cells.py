"""Cells: what a method leaves is measured and kept, whatever becomes of the method; budgets are held; seeds are common."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.compare_fakes import METHODS, measure, suite
from trainenv.compare import Suite, compare
from trainenv.compare.allowed_flops import allowance
from trainenv.compare.cells import MEASURED, Cell, Task, measure_cell, play, read, write
from trainenv.compare.runner import Estimate, cells, expected_seconds
from trainenv.compare.scenarios import Scenario
from trainenv.composition.methods import METHODS as composed
from trainenv.config.schema import RunConfig
from trainenv.loop import train
from trainenv.records.run_folder import RunFolder, read_full_validation
from trainenv.run import TrainingRun
from trainenv.types import UserError


def task(folder: Path, method: str, scenario: str = "calm", seed: int = 0, **more: Any) -> Task:
    of = next(of for of in suite().scenarios if of.name == scenario)
    cell = Cell(scenario=scenario, seed=seed, method=method)
    return Task(
        cell=cell, scenario=of, method=METHODS[method], measure=measure, folder=folder, **more
    )


# ── one cell ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cell_is_kept_as_it_was_measured_and_its_run_is_not(tmp_path: Path) -> None:
    row = play(task(tmp_path, "nothing", seed=3))
    assert row is not None
    assert {"scenario", "seed", "method", "error", "budget", "seconds", *MEASURED} == set(row)
    assert (row["scenario"], row["seed"], row["method"], row["error"]) == ("calm", 3, "nothing", "")
    assert row["log_final_loss"] == pytest.approx(math.log(row["final_loss"]))
    assert (
        json.loads((tmp_path / "cells" / "calm" / "3" / "nothing.json").read_text(encoding="utf-8"))
        == row
    )
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["nothing.json"]


def test_the_run_is_kept_where_it_is_to_be(tmp_path: Path) -> None:
    play(task(tmp_path, "nothing", keep=True))
    assert (tmp_path / "runs" / "calm" / "0" / "nothing" / "left.json").is_file()


def test_what_a_killed_process_has_left_is_in_nobody_s_way(tmp_path: Path) -> None:
    here = tmp_path / "runs" / "calm" / "0" / "nothing"
    here.mkdir(parents=True)
    (here / "torn").touch()
    row = play(task(tmp_path, "nothing"))
    assert row is not None
    assert row["ended"] == "budget spent"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("raises", "ZeroDivisionError: by hand"),
        ("refuses", "expected the package abc, found none; pip install abc"),
        ("lossless", "expected a final validation loss, found nan"),
    ],
)
def test_a_method_that_fails_is_a_failed_cell(method: str, said: str, tmp_path: Path) -> None:
    row = play(task(tmp_path, method))
    assert row is not None
    assert (row["ended"], row["error"]) == ("failed", said)
    assert set(MEASURED) <= set(row)
    assert row == read(tmp_path, Cell(scenario="calm", seed=0, method=method))
    assert not (tmp_path / "runs" / "calm" / "0" / method).exists()


def test_more_than_equal_compute_is_an_error_in_words(tmp_path: Path) -> None:
    row, within = play(task(tmp_path, "spendthrift")), play(task(tmp_path, "punctual"))
    assert row is not None
    assert within is not None
    assert row["ended"] == "failed"
    assert row["error"].startswith("not at equal compute: spent 5.0 % more than its budget: ")
    assert row["budget"] == pytest.approx(row["total_flops"] / 1.05)
    assert (within["ended"], within["error"]) == ("budget spent", "")


def test_a_stopped_cell_is_no_cell(tmp_path: Path) -> None:
    assert play(task(tmp_path, "stops-if-asked"), stop=lambda: True) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_torn_and_foreign_files_are_no_cells(tmp_path: Path) -> None:
    row = play(task(tmp_path, "nothing"))
    assert row is not None
    cell = Cell(scenario="calm", seed=0, method="nothing")
    assert read(tmp_path, cell) == row
    for text in ("", "{", "[]", json.dumps({"scenario": "calm"}), json.dumps({**row, "seed": 1})):
        cell.file(tmp_path).write_text(text, encoding="utf-8")
        assert read(tmp_path, cell) is None


def test_a_row_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    (tmp_path / "cells").touch()
    with pytest.raises(UserError, match=r"expected to be able to write .*nothing.json, found"):
        play(task(tmp_path, "nothing"))


# ── budgets and seeds ───────────────────────────────────────────────────────────────────────────────────────────────


def small(scenario: Scenario, seed: int, steps: int = 60) -> RunConfig:
    return RunConfig.load(
        scenario.config(seed), {"steps": steps, "validation.every": 25, "validation.sequences": 8}
    )


@pytest.mark.parametrize("place", [0, 3])
def test_the_budget_is_what_a_run_left_alone_spends(place: int, tmp_path: Path) -> None:
    """A real one, that the measures are taken of."""
    scenario = suite().scenarios[place]
    config = small(scenario, 1)
    train(TrainingRun.from_config(config), RunFolder.create(tmp_path / "run", config))
    row = measure_cell(tmp_path / "run")
    assert row["total_flops"] == pytest.approx(allowance(config), rel=1e-12)
    assert set(row) == set(MEASURED)
    assert row["steps"] == 60
    assert row["decisions"] is None


def test_other_validations_and_monitors_are_in_the_budget() -> None:
    config = small(suite().scenarios[0], 0)
    plain = allowance(RunConfig.load(config, {"validation.every": 0, "monitor.probe_every": 0}))
    run = TrainingRun.from_config(config)
    assert plain == pytest.approx(60 * run.flops_ahead + 2 * run.flops_per_evaluation)
    assert allowance(RunConfig.load(config, {"monitor.probe_every": 0})) == pytest.approx(
        plain + 2 * run.flops_per_evaluation
    )
    assert allowance(RunConfig.load(config, {"validation.every": 60})) < allowance(
        RunConfig.load(config, {"validation.every": 59})
    )


def test_evaluations_of_the_whole_validation_part_are_in_the_budget(tmp_path: Path) -> None:
    config = RunConfig.load(small(suite().scenarios[0], 0), {"validation.full_every": 25})
    train(TrainingRun.from_config(config), RunFolder.create(tmp_path / "run", config))
    assert len(read_full_validation(tmp_path / "run")) == 3
    spent = measure_cell(tmp_path / "run")["total_flops"]
    assert spent == pytest.approx(allowance(config), rel=1e-12)
    assert spent > 1.1 * allowance(RunConfig.load(config, {"validation.full_every": 0}))


# ── the test part ───────────────────────────────────────────────────────────────────────────────────────────────────

TESTED = {"overrides": {"validation": {"sequences": 8, "test_sequences": 20}}}


def played_with(folder: Path, **measured: Any) -> dict[str, Any]:
    """Play a cell whose scenario has a test; its measure returns other values in some places."""
    changed = replace(
        task(folder, "nothing"),
        scenario=suite(**TESTED).scenarios[0],
        measure=lambda path: measure(path) | measured,
    )
    row = play(changed)
    assert row is not None
    return row


def test_final_losses_are_of_the_test_part_where_a_scenario_has_one(tmp_path: Path) -> None:
    row = played_with(tmp_path / "a", test_loss=3.5)
    assert (row["final_loss"], row["test_loss"]) == (3.5, 3.5)
    assert row["log_final_loss"] == pytest.approx(math.log(3.5))
    plain = play(replace(task(tmp_path / "b", "nothing"), measure=with_test_loss))
    assert plain is not None
    assert plain["test_loss"] == 3.5
    assert plain["final_loss"] != 3.5
    found = {of.measured_on for of in suite().scenarios}
    assert (found, suite(**TESTED).scenarios[0].measured_on) == ({"validation"}, "test")


def with_test_loss(path: Path, /) -> dict[str, Any]:
    return measure(path) | {"test_loss": 3.5}


@pytest.mark.parametrize("measured", [{}, {"test_loss": None}, {"test_loss": math.nan}])
def test_a_missing_test_loss_is_no_validation_loss(
    tmp_path: Path, measured: dict[str, Any]
) -> None:
    row = played_with(tmp_path, **measured)
    assert (row["ended"], row["error"]) == ("failed", "expected a final test loss, found nan")
    assert row["final_loss"] is None


def test_the_test_loss_of_a_real_run(tmp_path: Path) -> None:
    scenario = suite(**TESTED).scenarios[0]
    real = replace(
        task(tmp_path, "nothing", keep=True),
        scenario=scenario,
        method=composed["nothing"],
        measure=measure_cell,
    )
    row = play(real)
    assert row is not None
    summary = json.loads((real.cell.run_folder(tmp_path) / "summary.json").read_text())
    assert row["final_loss"] == row["test_loss"] == summary["test_loss"]
    assert row["final_loss"] != summary["final_validation_loss"]
    assert row["total_flops"] == pytest.approx(row["budget"])  # the test is not charged


def test_a_cell_of_the_version_before_has_no_test_loss(tmp_path: Path) -> None:
    row = play(task(tmp_path, "nothing"))
    assert row is not None
    cell = Cell(scenario="calm", seed=0, method="nothing")
    del row["test_loss"]
    cell.file(tmp_path).write_text(json.dumps(row), encoding="utf-8")
    assert read(tmp_path, cell) == row | {"test_loss": None}


# ── seeds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_seeds_are_common_to_methods_and_to_nothing_else(tmp_path: Path) -> None:
    seen = {}
    for method in ("nothing", "branching"):
        for seed in (0, 1):
            for scenario in ("calm", "high"):
                play(task(tmp_path, method, scenario=scenario, seed=seed, keep=True))
                left = json.loads(
                    (tmp_path / "runs" / scenario / str(seed) / method / "left.json").read_text(
                        encoding="utf-8"
                    )
                )
                seen[method, scenario, seed] = left["seed"]
    assert all(
        seen["nothing", scenario, seed] == seen["branching", scenario, seed]
        for scenario in ("calm", "high")
        for seed in (0, 1)
    )
    assert len(set(seen.values())) == 4


# ── all cells ───────────────────────────────────────────────────────────────────────────────────────────────────────


def played(folder: Path, of: Suite, **more: Any) -> tuple[dict[str, Any], list[Cell]]:
    """The results, and the cells in the order they were played."""
    order: list[Cell] = []

    def note(progress: Any) -> None:
        order.append(
            Cell(
                scenario=progress.row["scenario"],
                seed=progress.row["seed"],
                method=progress.row["method"],
            )
        )

    return compare(folder, of, METHODS, measure, workers=0, progress=note, **more), order


def test_every_prefix_is_balanced() -> None:
    of = suite(seeds=3)
    order = [cell for _, cell in cells(of)]
    assert len(order) == len(set(order)) == 4 * 3 * 2
    assert {scenario.name for scenario, cell in cells(of) if scenario.name == cell.scenario} == {
        scenario.name for scenario in of.scenarios
    }
    for end in range(1, len(order) + 1):
        prefix = order[:end]
        for names, slack in (
            ([cell.method for cell in prefix], 1),
            ([cell.scenario for cell in prefix], 2),
        ):
            counts = [names.count(name) for name in set(names)]
            assert max(counts) - min(counts) <= slack
        seeds = [sum(cell.seed == seed for cell in prefix) for seed in range(3)]
        assert max(seeds) - min(seeds) <= 4


def test_a_comparison_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    whole, order = played(tmp_path / "whole", suite())
    assert len(order) == 16
    left = iter([False] * 5)
    part, first = played(tmp_path / "part", suite(), stop=lambda: next(left, True))
    assert first == order[:5]
    assert not part["finished"]
    assert part["cells"]["there"] == 5
    rest, second = played(tmp_path / "part", suite())
    assert first + second == order
    assert rest["finished"]

    def but_for_time(found: dict[str, Any]) -> dict[str, Any]:
        rows = [
            {key: value for key, value in row.items() if key != "seconds"} for row in found["rows"]
        ]
        return {**found, "rows": rows, "cells": {**found["cells"], "seconds": 0}}

    assert json.dumps(but_for_time(rest)) == json.dumps(but_for_time(whole))
    again, third = played(tmp_path / "part", suite())
    assert third == []
    assert json.dumps(again) == json.dumps(rest)
    lone = Cell(scenario="high", seed=1, method="branching")
    lone.file(tmp_path / "part").unlink()
    assert played(tmp_path / "part", suite())[1] == [lone]
    assert not (tmp_path / "part" / "runs").exists()


def test_more_methods_and_seeds_can_be_added_later(tmp_path: Path) -> None:
    played(tmp_path, suite(seeds=1))
    found, order = played(tmp_path, suite(seeds=2, methods=["nothing", "branching", "diverges"]))
    assert {cell.seed for cell in order if cell.method != "diverges"} == {1}
    assert found["finished"]
    assert [row["method"] for row in found["rows"]].count("diverges") == 8
    part, order = played(tmp_path, suite().select(scenarios=["high"], methods=["nothing"], seeds=1))
    assert order == []
    assert part["cells"]["wanted"] == 1
    assert {
        scenario["name"]
        for scenario in json.loads((tmp_path / "suite.json").read_text())["scenarios"]
    } == {scenario.name for scenario in suite().scenarios}


def test_another_suite_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    played(tmp_path, suite())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changed = suite(
        sizes={
            "tiny": {
                "model": {"width": 8, "layers": 1, "heads": 1, "context": 16},
                "batch_size": 4,
                "steps": 41,
            }
        }
    )
    with pytest.raises(
        UserError,
        match=r"holds the cells of another suite \(its scenario 'calm' is another\); give another --out",
    ):
        played(tmp_path, changed)
    with pytest.raises(UserError, match="expected 'quick', found 'fake'"):
        compare(tmp_path, replace(suite(), name="quick"), METHODS, measure)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "suite.json").write_text("{}")
    with pytest.raises(UserError, match="expected the suite of a comparison in"):
        played(tmp_path, suite())
    (tmp_path / "suite.json").unlink()
    with pytest.raises(
        UserError, match="expected an empty folder or a comparison, found other files"
    ):
        played(tmp_path, suite())


def test_an_unknown_method_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown method 'nothin'; did you mean 'nothing'"):
        played(tmp_path / "out", suite(methods=["nothin"]))
    with pytest.raises(UserError, match="branching must be a function at the top of a module"):
        compare(
            tmp_path / "out",
            suite(),
            {**METHODS, "branching": lambda *given: {}},
            measure,
            workers=1,
        )
    assert not (tmp_path / "out").exists()


def test_processes_that_die_and_methods_that_fail_are_cells(tmp_path: Path) -> None:
    """In one process of its own, which is replaced twice."""
    of = suite(seeds=1, methods=["nothing", "dies-once", "raises", "dies"]).select(
        scenarios=["calm"]
    )
    rows: dict[str, dict[str, Any]] = {}
    found = compare(
        tmp_path,
        of,
        METHODS,
        measure,
        workers=1,
        progress=lambda progress: rows.update({progress.row["method"]: progress.row}),
    )
    assert found["finished"]
    assert list(rows) == ["nothing", "dies-once", "raises", "dies"]
    assert {name: row["ended"] for name, row in rows.items()} == {
        "nothing": "budget spent",
        "dies-once": "budget spent",
        "raises": "failed",
        "dies": "failed",
    }
    assert rows["dies"]["error"] == "the process ended with exit code -9, 2 times"
    assert found["cells"] == {**found["cells"], "wanted": 4, "there": 4, "failed": 2, "diverged": 0}
    assert [failure["method"] for failure in found["failed"]] == ["raises", "dies"]
    assert not (tmp_path / "runs").exists()
    assert write(tmp_path, rows["dies"]) == read(
        tmp_path, Cell(scenario="calm", seed=0, method="dies")
    )
    left = rows["nothing"]
    alone = play(task(tmp_path / "alone", "nothing"))
    assert alone is not None
    assert {**alone, "seconds": 0} == {**left, "seconds": 0}


# ── how long ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_estimate_learns_what_methods_take() -> None:
    estimate = Estimate(workers=2)
    slow, quick = (
        [Cell(scenario="t", seed=seed, method=name) for seed in range(4)]
        for name in ("slow", "quick")
    )
    estimate.expect(dict.fromkeys([*slow, *quick], 10.0))
    assert estimate.seconds_left() == pytest.approx(8 + 40)
    estimate.note(slow[0], 30.0)
    estimate.note(quick[0], 10.0)
    assert estimate.seconds_left() == pytest.approx((3 * 30 + 3 * 10) / 2)
    for cell in (*slow[1:], *quick[1:]):
        estimate.note(cell, 1.0)
    assert estimate.seconds_left() == 0


def test_the_longest_cell_takes_what_such_cells_have_taken() -> None:
    """On a machine that is a hundred times as fast as was expected, too."""
    estimate = Estimate(workers=4)
    one, other = (Cell(scenario="t", seed=seed, method="nothing") for seed in range(2))
    estimate.expect({one: 1000.0, other: 2000.0})
    estimate.note(one, 10.0)
    assert estimate.seconds_left() == pytest.approx(20.0)


def test_what_is_there_takes_no_time(tmp_path: Path) -> None:
    whole = expected_seconds(tmp_path, suite(), 1)
    play(task(tmp_path, "nothing"))
    left = expected_seconds(tmp_path, suite(), 1)
    assert 0 < left < whole
    assert expected_seconds(tmp_path, suite(seeds=4), 2) > left
    assert os.listdir(tmp_path / "cells") == ["calm"]
