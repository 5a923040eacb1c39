"""`live.jsonl`: what watchers see between two parts of the telemetry, and nothing that stays."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.support.tracked_runs import STEPS, RecordedRun, record, steps
from trainenv.config.schema import RunConfig
from trainenv.records.live_log import NAME, LiveLog, thinned
from trainenv.records.observer import Observers
from trainenv.records.run_folder import RunFolder
from trainenv.types import Telemetry


def test_a_short_run_writes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    seen = list[bool]()
    folder = record(
        tmp_path / "run", [], during=lambda: seen.append((tmp_path / "run" / NAME).exists())
    )
    assert seen == [False]
    assert not (folder / NAME).exists()


def wait_for(path: Path, lines: int) -> list[str]:
    """The lines of a file, once there are so many."""
    pause = threading.Event()
    for _ in range(6000):
        if path.exists() and len(found := path.read_text().splitlines()) >= lines:
            return found
        pause.wait(0.01)
    raise AssertionError(f"{path} never had {lines} lines")


def test_steps_between_two_parts_are_there_and_go_with_the_part(tmp_path: Path) -> None:
    run = RecordedRun(RunConfig.load("tiny", {"steps": STEPS}))
    folder = RunFolder.create(tmp_path / "run", run.config)
    log = LiveLog(every=0.01)
    path = folder.path / NAME
    path.write_text("left by a killed process\n")
    log.start(run, folder)  # type: ignore[arg-type]
    log.steps(steps(0, 16), 0)
    run.train(folder, steps(0, 16))
    found = [json.loads(line) for line in wait_for(path, 3)]
    rows = [row for line in found[1:] for row in line["rows"]]
    assert [row[:3] for row in rows] == [[0, t.step, t.loss] for t in steps(0, 16)]
    assert found[0]["columns"][:3] == ["line", "step", "loss"]
    assert found[-1]["end"] == STEPS
    folder.telemetry.flush()
    inode = path.stat().st_ino
    pause = threading.Event()
    for _ in range(6000):
        if path.stat().st_ino != inode:
            break
        pause.wait(0.01)
    assert not any(json.loads(line).get("rows") for line in path.read_text().splitlines()[1:])
    log.finish(None)  # an error: the file stays, and tells who wrote it
    assert "pid" in json.loads(path.read_text().splitlines()[0])
    log.finish({"ended": "interrupted"})
    assert not path.exists()


def test_thinned_rows_keep_the_extremes_and_the_last() -> None:
    rows = [(0, one) for one in steps(0, 60)]
    rows[17] = (0, rows[17][1].__class__(**{**_fields(rows[17][1]), "loss": float("nan")}))
    few = thinned(rows, most=12)
    assert len(few) <= 14
    assert few[-1] is rows[-1]
    assert rows[17] in few
    lowest = min(rows, key=lambda row: row[1].loss if row[1].loss == row[1].loss else 9)
    assert lowest in few
    assert [row[1].step for row in few] == sorted(row[1].step for row in few)
    assert thinned(rows[:10]) == rows[:10]


def _fields(telemetry: Telemetry) -> dict[str, object]:
    return {name: getattr(telemetry, name) for name in telemetry.__slots__ if name != "__weakref__"}


class Broken:
    def __str__(self) -> str:
        return "this one"

    def start(self, run: object, folder: object) -> None:
        """Take everything at first."""

    def steps(self, window: object, line: int) -> None:
        raise OSError("full")

    event = finish = steps


def test_an_observer_that_fails_is_named_once() -> None:
    observers = Observers()
    observers.start(None, None, [Broken()])  # type: ignore[arg-type, list-item]
    with pytest.warns(UserWarning, match="this one follows the run no more: OSError: full"):
        observers.steps([], 0)
    observers.steps([], 0)
    observers.finish(None)
