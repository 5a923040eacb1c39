"""Checkpoints of a driven run: when, of what, and what crashes, lost rewinds and full disks leave to go on from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.driven_runs import Rewinder, newest, toy
from trainenv import TrainingRun
from trainenv.checkpoints.store import CheckpointStore
from trainenv.loop import resume, train
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import read_telemetry
from trainenv.tools.json_lines import read_lines
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.training.snapshots import fingerprint
from trainenv.types import Event, Snapshot, Telemetry, UserError


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str | None]]:
    """Step and moments of each save that was asked for."""
    asked: list[tuple[int, str | None]] = []
    save = CheckpointStore.save

    def noting(store: CheckpointStore, snapshot: Snapshot, **how: Any) -> None:
        asked.append((snapshot.step, how.get("moments")))
        save(store, snapshot, **how)

    monkeypatch.setattr(CheckpointStore, "save", noting)
    return asked


@pytest.mark.parametrize(
    ("every", "checkpoint_every", "expected"),
    [
        (0, 16, [0, 16, 32, 40]),
        (0, 8, [0, 8, 16, 24, 32, 40]),
        (0, 20, [0, 20, 40]),  # within a block
        (0, 1, list(range(41))),
        (10, 10, [0, 10, 20, 30, 40]),
        (0, 1000, [0, 40]),
    ],
)
def test_checkpoints_at_their_steps_at_the_start_and_exact_at_the_end(
    every: int,
    checkpoint_every: int,
    expected: list[int],
    saved: list[tuple[int, str | None]],
    folder: RunFolder,
) -> None:
    train(toy(40, every, checkpoints={"every": checkpoint_every}), folder)
    assert saved == [*((step, None) for step in expected[:-1]), (40, "exact")]
    assert CheckpointStore(folder.path / "checkpoints").steps() == expected[-8:]
    assert all(finding.ok for finding in CheckpointStore(folder.path / "checkpoints").verify())


def test_only_the_last_are_kept(folder: RunFolder) -> None:
    train(toy(40, checkpoints={"every": 8, "keep_last": 2}), folder)
    assert CheckpointStore(folder.path / "checkpoints").steps() == [32, 40]


def test_what_a_stop_leaves_is_exact_and_the_rest_as_configured(folder: RunFolder) -> None:
    run, asked = toy(40, checkpoints={"every": 8}), iter([False, False, True])
    train(run, folder, stop=lambda: next(asked))
    store = CheckpointStore(folder.path / "checkpoints")
    assert [(entry.step, entry.tier) for entry in store.entries()] == [
        (0, "8bit"),
        (8, "8bit"),
        (16, "8bit"),
        (24, "exact"),
    ]
    assert store.load().tier == "exact"
    assert fingerprint(store.load(), ("ledger", "numerics", "statistics")) == run.fingerprint()


def test_a_checkpoint_has_the_telemetry_up_to_it_on_disk(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    save, there = CheckpointStore.save, []

    def looking(store: CheckpointStore, snapshot: Snapshot, **how: Any) -> None:
        there.append((snapshot.step, len(read_telemetry(folder.path)) if snapshot.step else 0))
        save(store, snapshot, **how)

    monkeypatch.setattr(CheckpointStore, "save", looking)
    train(toy(40, checkpoints={"every": 8}), folder)
    assert there == [(step, step) for step in (0, 8, 16, 24, 32, 40)]


def test_after_a_rewind_the_new_line_is_what_there_is_to_go_back_to(folder: RunFolder) -> None:
    """Not the newest step of the line that was left."""

    def crash(run: TrainingRun, window: Sequence[Telemetry]) -> None:
        if run.lr_scale == 0.5 and run.step == 16:
            raise OSError("the power went out")

    with pytest.raises(OSError, match="power"):
        train(toy(40, checkpoints={"every": 16}), folder, callback=Rewinder(at=24), watch=crash)
    resumed, snapshot = RunFolder.resume(folder.path)
    assert (snapshot.step, snapshot.state["lr_scale"], resumed.line) == (8, 0.5, 1)
    run = toy(40, checkpoints={"every": 16})
    run.restore(snapshot)
    train(run, resumed)
    kept = read_telemetry(folder.path, kept_only=True)
    assert list(kept["step"]) == list(range(1, 25))
    assert set(kept["lr_scale"][8:]) == {0.5}


def test_a_rewind_that_was_lost_before_it_was_saved_is_none(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new line had begun: what is gone on with, and what is kept, is the line before."""

    def crash(folder: RunFolder, event: Event) -> None:
        raise OSError("the power went out")

    settings: dict[str, Any] = {"checkpoints": {"every": 16, "moments": "exact"}}
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "event", crash)
        with pytest.raises(OSError, match="power"):
            train(toy(40, **settings), folder, callback=Rewinder(at=24))
    assert [
        (record["line"], record["step"]) for record in read_lines(folder.path / "lines.jsonl")
    ] == [(1, 8)]
    run = toy(40, **settings)
    resumed, _ = resume(folder.path, run)
    train(run, resumed)
    kept = read_telemetry(folder.path, kept_only=True)
    assert list(kept["step"]) == list(range(1, 41))
    assert list(kept["line"]) == [0] * 16 + [2] * 24
    assert "rewinds" not in newest(resumed).state


def test_a_crash_loses_at_most_what_came_after_the_last_checkpoint(folder: RunFolder) -> None:
    def crash(run: TrainingRun, window: Sequence[Telemetry]) -> None:
        if run.step == 32:
            raise OSError("the power went out")

    settings = {"checkpoints": {"every": 16, "moments": "exact"}}
    with pytest.raises(OSError, match="power"):
        train(toy(40, **settings), folder, watch=crash)
    resumed, snapshot = RunFolder.resume(folder.path)
    assert snapshot.step == 16
    run = toy(40, **settings)
    run.restore(snapshot)
    train(run, resumed)
    straight = toy(40)
    straight.advance(40)
    assert run.fingerprint() == straight.fingerprint()
    kept = read_telemetry(folder.path, kept_only=True)
    assert list(kept["step"]) == list(range(1, 41))
    assert list(kept["line"]) == [0] * 16 + [1] * 24


def test_one_process_at_a_time_records_in_a_folder(folder: RunFolder) -> None:
    """Whoever comes second changes nothing, not a byte of the first's history."""
    train(toy(40), folder, stop=lambda: True)
    one, snapshot = RunFolder.resume(folder.path)
    other, _ = RunFolder.resume(folder.path)
    first, second = toy(40), toy(40)
    first.restore(snapshot)
    second.restore(snapshot)
    seen = []

    def intrude(run: TrainingRun, window: Sequence[Telemetry]) -> None:
        before = (folder.path / "lines.jsonl").read_bytes()
        with pytest.raises(UserError, match=r"checkpoints is in use: .* is saving in it"):
            train(second, other)
        seen.append((folder.path / "lines.jsonl").read_bytes() == before)

    train(first, one, watch=intrude, stop=lambda: True)
    assert seen == [True]
    before = {
        path: path.read_bytes()
        for path in folder.path.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    with pytest.raises(
        UserError, match=r"expected the run in .* as it was read, found .*; resume it again"
    ):
        train(second, other)
    assert before == {
        path: path.read_bytes()
        for path in folder.path.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    again, newer = RunFolder.resume(folder.path)
    second.restore(newer)
    assert train(second, again)["ended"] == "budget spent"
    assert [record["step"] for record in read_lines(folder.path / "lines.jsonl")] == [8, 16]


def fails(monkeypatch: pytest.MonkeyPatch, after: int) -> threading.Event:
    """The disk is full from the `after`-th checkpoint on. Set once it was."""
    done, create, full = [], Disk.create, threading.Event()

    def creating(disk: Disk, path: Path) -> int:
        if path.name.startswith(".cp_"):
            done.append(path)
        if len(done) > after:
            full.set()
            raise OSError(28, "No space left on device")
        return create(disk, path)

    monkeypatch.setattr(Disk, "create", creating)
    return full


def test_a_disk_that_is_full_ends_the_run_and_leaves_what_was_saved(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    with monkeypatch.context() as patch:
        fails(patch, after=2)
        with pytest.raises(UserError, match="No space left on device"):
            train(toy(40, checkpoints={"every": 8}), folder)
    assert not (folder.path / "summary.json").exists()
    assert RunFolder.resume(folder.path)[1].step == 8


def test_a_disk_that_is_full_from_the_start_is_told_of_soon(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    fails(monkeypatch, after=0)
    run = toy(400, checkpoints={"every": 8})
    with pytest.raises(UserError, match="No space left on device"):
        train(run, folder)
    assert run.step == 8


def test_a_save_that_failed_keeps_no_other_from_being_tried(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    """The failure is told, and the state at the stop is there all the same."""
    run, left = toy(40, checkpoints={"every": 8}), [False, False, True]
    with monkeypatch.context() as patch:
        full = fails(patch, after=2)

        def stop() -> bool:
            if run.step == 24:
                assert full.wait(60)  # the save of step 16 runs in the background
                patch.undo()
            return left.pop(0)

        with pytest.raises(UserError, match="No space left on device"):
            train(run, folder, stop=stop)
    _, snapshot = RunFolder.resume(folder.path)
    assert (snapshot.step, snapshot.tier) == (24, "exact")


def test_a_run_may_go_on_without_its_checkpoints(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    fails(monkeypatch, after=2)
    with pytest.warns(UserWarning, match="No space left on device"):
        summary = train(toy(40, checkpoints={"every": 8, "on_error": "warn"}), folder)
    assert (summary["ended"], summary["step"]) == ("budget spent", 40)
    assert CheckpointStore(folder.path / "checkpoints").steps() == [0, 8]
