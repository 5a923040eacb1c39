"""A finished run that is extended, forks of recorded states, and the list of runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import SMALL
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.schema import RunConfig
from trainenv.loop import resume, train
from trainenv.records.continuation import PARENT, extend, fork
from trainenv.records.made_of import MadeOf
from trainenv.records.run_folder import RunFolder
from trainenv.records.run_list import list_runs
from trainenv.records.telemetry_log import read_telemetry
from trainenv.run import TrainingRun
from trainenv.types import UserError

EXACT: dict[str, Any] = SMALL | {"checkpoints.every": 8, "checkpoints.moments": "exact"}


def trained(path: Path, **more: Any) -> TrainingRun:
    run = TrainingRun.from_config("tiny", EXACT | more)
    train(run, RunFolder.create(path, run.config))
    return run


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 24 steps. Tests only read it."""
    path = tmp_path_factory.mktemp("ended") / "run"
    trained(path)
    return path


# ── extend ──────────────────────────────────────────────────────────────────────────────────────


def test_an_extended_run_has_the_rates_of_a_longer_one(tmp_path: Path) -> None:
    trained(tmp_path / "short")
    said = extend(tmp_path / "short", 40)
    assert said.startswith("extended from 24 to 40 steps: the learning rate is that of a run of 40")
    assert "from 0.1 to 0.47 of the base rate at step 24, and ends at 0.1 at step 40" in said
    assert RunConfig.load(tmp_path / "short" / "config.yaml").steps == 40
    assert not (tmp_path / "short" / "summary.json").exists()
    assert json.loads((tmp_path / "short" / "summary-step-24.json").read_text())["step"] == 24
    run = TrainingRun.from_config(tmp_path / "short" / "config.yaml")
    folder, _ = resume(tmp_path / "short", run)
    assert folder.changes == ()
    assert (run.step, run.horizon.end) == (24, 40)
    assert train(run, folder)["step"] == 40
    longer = trained(tmp_path / "long", steps=40)
    rows = read_telemetry(tmp_path / "short", kept_only=True)
    assert list(rows["lr"][24:]) == list(read_telemetry(tmp_path / "long")["lr"][24:])
    assert longer.horizon == run.horizon


def test_an_extension_that_was_killed_halfway_is_not_made_twice(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    kept = (tmp_path / "run" / "summary.json").read_text()
    made = MadeOf.read(tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    extend(tmp_path / "run", 40)
    # As if it was killed once the checkpoint was saved.
    (tmp_path / "run" / "summary.json").write_text(kept)
    (tmp_path / "run" / "config.yaml").write_text(config)
    assert made is not None
    replace(made, config=made.config).write(tmp_path / "run")
    extend(tmp_path / "run", 40)
    snapshot = CheckpointStore(tmp_path / "run" / "checkpoints").load()
    assert snapshot.state["horizon"] == {"end": 40, "since": 4, "done": 0.0}


@pytest.mark.parametrize(
    ("steps", "words"), [(24, "expected more than the 24 steps"), (3, "found 3; give a larger")]
)
def test_a_budget_that_is_not_larger_is_refused(steps: int, words: str, ended: Path) -> None:
    with pytest.raises(UserError, match=words):
        extend(ended, steps)
    assert (ended / "summary.json").is_file()


def test_only_a_finished_run_is_extended(tmp_path: Path) -> None:
    run = TrainingRun.from_config("tiny", EXACT)
    train(run, RunFolder.create(tmp_path / "run", run.config), stop=lambda: run.step >= 8)
    with pytest.raises(UserError, match=r"expected a finished run .* leave --steps out"):
        extend(tmp_path / "run", 40)
    (tmp_path / "run" / "summary.json").write_text('{"ended": "diverged"}')
    with pytest.raises(UserError, match=r"has diverged; start from .* trainenv fork"):
        extend(tmp_path / "run", 40)


# ── fork ────────────────────────────────────────────────────────────────────────────────────────


def test_a_fork_without_changes_ends_like_its_parent(ended: Path, tmp_path: Path) -> None:
    forked = fork(ended, 8, {}, tmp_path / "same")
    assert (forked.run.step, forked.note) == (8, "")
    train(forked.run, forked.folder)
    states = [CheckpointStore(path / "checkpoints").load() for path in (ended, tmp_path / "same")]
    assert forked.run.step == 24
    restored = TrainingRun.from_config("tiny", EXACT)
    restored.restore(states[0])
    assert forked.run.fingerprint() == restored.fingerprint()
    parent = json.loads((tmp_path / "same" / PARENT).read_text())
    assert (parent["folder"], parent["step"], parent["changes"]) == (str(ended), 8, {})


def test_a_changed_rate_is_in_force_and_on_record(ended: Path, tmp_path: Path) -> None:
    forked = fork(ended, 16, {"optimizer.lr": 1e-3, "steps": 32}, tmp_path / "lower")
    assert forked.run.base_lr == 1e-3
    assert forked.run.horizon.end == 32
    assert forked.run.advance(1)[0].lr < 1e-3
    changes = json.loads((tmp_path / "lower" / PARENT).read_text())["changes"]
    assert changes == {"optimizer.lr": 1e-3, "steps": 32}


def test_what_cannot_be_carried_over_is_named(ended: Path, tmp_path: Path) -> None:
    overrides = {"optimizer.name": "sgd", "seed": 5, "clip.policy": "arc"}
    forked = fork(ended, 8, overrides, tmp_path / "other")
    assert forked.note == (
        "not carried over, because the configuration differs: the optimizer's moments, "
        "the state of the clip policy, skipped and reordered data"
    )
    assert forked.run.clip == "arc"
    forked.run.advance(2)


@pytest.mark.parametrize(
    ("step", "overrides", "words"),
    [
        (24, {}, "has spent its budget of 24 steps by step 24; add --set steps=N with more than"),
        (7, {}, "7"),
        (8, {"model.width": 32}, "the snapshot is of another model"),
    ],
)
def test_a_fork_that_cannot_be_made_leaves_nothing(
    step: int, overrides: dict[str, Any], words: str, ended: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        fork(ended, step, overrides, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_no_run_is_no_parent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected the folder of a run at .* `trainenv runs`"):
        fork(tmp_path, None, {}, tmp_path / "new")


# ── the list of runs ────────────────────────────────────────────────────────────────────────────


def test_runs_are_listed_with_their_state(ended: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    fork(ended, 8, {}, root / "deep" / "fork")
    stopped = TrainingRun.from_config("tiny", EXACT)
    folder = RunFolder.create(root / "stopped", stopped.config)
    folder.flags = ("--by-hand",)
    train(stopped, folder, stop=lambda: stopped.step >= 12)
    (root / "no run").mkdir()
    found = {run.folder.name: run for run in [*list_runs(root), *list_runs(ended)]}
    assert set(found) == {"fork", "stopped", "run"}
    assert (found["fork"].state, found["fork"].step) == ("not started", None)
    assert found["fork"].parent == f"{ended}@8"
    assert (found["run"].state, found["run"].step, found["run"].steps) == ("finished", 24, 24)
    assert found["run"].loss == pytest.approx(stopped.uniform_loss, abs=3)
    assert (found["stopped"].state, found["stopped"].step) == ("interrupted", 12)
    assert (found["stopped"].steered, found["run"].steered) == ("--by-hand", "")
    assert found["run"].bytes > 100_000
    assert json.loads(json.dumps(found["run"].to_json()))["folder"] == str(ended)


def test_a_run_that_is_recorded_now_is_running(tmp_path: Path) -> None:
    run = TrainingRun.from_config("tiny", EXACT)
    states = []

    def watch(*_: Any) -> None:
        states.extend(one.state for one in list_runs(tmp_path))

    train(run, RunFolder.create(tmp_path / "run", run.config), watch=watch)
    assert set(states) == {"running"}
    assert [one.state for one in list_runs(tmp_path)] == ["finished"]
