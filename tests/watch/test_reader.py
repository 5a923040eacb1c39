"""Following a run's folder: every byte once, at any moment of writing, and a state that is right."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.made_folders import decision, make_run, rows_of, write_decision, write_rows
from trainenv.config.schema import RunConfig
from trainenv.records.run_folder import RunFolder
from trainenv.report.run.run_record import read_run
from trainenv.types import Event, UserError
from trainenv.watch import RunReader, state_of
from trainenv.watch.life import life_of
from trainenv.watch.state import curves_of, facts_of
from trainenv.watch.steps import Steps, picture
from trainenv.watch.tailing import Tail

NOBODY = 2**22 + 1  # above the highest process id


def beat(
    folder: Path, *, step: int, rows: Any = (), pid: int | None = None, age: float = 0.0
) -> None:
    """Write a heartbeat, as the process that trains does."""
    path = folder / "live.jsonl"
    if not path.exists():
        head = {"host": socket.gethostname(), "pid": os.getpid() if pid is None else pid}
        path.write_text(json.dumps(head) + "\n", encoding="utf-8")
    line = {
        "time": time.time() - age,
        "step": step,
        "end": 1000,
        "flops": {"main": 1e9},
        "rows": rows,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """A run of which 100 of 1000 steps are recorded."""
    path = tmp_path / "run"
    folder = RunFolder.create(path, RunConfig.load("tiny", {"steps": 1000, "name": "live"}))
    folder.validation(0, 5.5)
    write_rows(path, rows_of(0, 100, 1000, np.random.default_rng(0)))
    return path


def kept(reader: RunReader) -> list[int]:
    return [
        step
        for number, count in reader.steps.kept(reader.begun)
        for step in reader.steps.lines[number].step[:count].tolist()
    ]


def test_each_call_reads_what_is_new(running: Path) -> None:
    reader = RunReader(running)
    assert reader.poll()
    assert kept(reader) == list(range(1, 101))
    assert not reader.poll()
    write_rows(running, rows_of(100, 150, 1000, np.random.default_rng(1)))
    RunFolder(running).event(Event(120, "fired", {"index": 3.0, "loss": 2.0}))
    write_decision(running, decision(1, 100, 100, np.random.default_rng(0)))
    assert reader.poll()
    assert kept(reader) == list(range(1, 151))
    assert [event["kind"] for event in reader.events] == ["fired"]
    assert len(reader.decisions) == 1
    assert not reader.poll()


def test_read_in_one_go_or_bit_by_bit_is_the_same(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "run")
    at_once = RunReader(whole)
    at_once.poll()
    growing = tmp_path / "growing"
    shutil.copytree(
        whole,
        growing,
        ignore=lambda _, names: [
            n
            for n in names
            if n != "config.yaml" and n != "telemetry" and not n.startswith("part-00000")
        ],
    )
    reader = RunReader(growing)
    reader.poll()
    for name in ("events.jsonl", "lines.jsonl", "validation.jsonl"):
        content = (whole / name).read_bytes()
        for start in range(0, len(content), 97):  # lines are torn at any place
            with (growing / name).open("ab") as file:
                file.write(content[start : start + 97])
            reader.poll()
    for path in sorted((whole / "telemetry").iterdir()):
        shutil.copy(path, growing / "telemetry")
        reader.poll()
    shutil.copytree(whole / "branches", growing / "branches")
    shutil.copy(whole / "summary.json", growing)
    reader.poll()
    ours, theirs = state_of(reader), state_of(at_once)
    assert ours["curves"] == theirs["curves"]
    assert ours["story"] == theirs["story"]


def test_the_kept_history_is_that_of_the_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    reader = RunReader(folder)
    reader.poll()
    record = read_run(folder)
    assert kept(reader) == record.kept["step"].tolist()
    curves = curves_of(reader)
    assert min(x for x in curves["low"]) == pytest.approx(record.kept["loss"].min(), rel=1e-4)
    assert max(x for x in curves["high"]) == pytest.approx(record.kept["loss"].max(), rel=1e-4)
    assert [v[:2] for v in curves["validation"]] == [
        (v["step"], v["loss"]) for v in record.validation
    ]
    (ghost,) = curves["ghosts"]
    lost = record.steps[~record.steps["kept"]]["step"]
    assert (ghost["step"][0], ghost["step"][-1]) == (lost.min(), lost.max())


def test_rows_of_the_heartbeat_give_way_to_the_telemetry(running: Path) -> None:
    reader = RunReader(running)
    reader.poll()
    beat(
        running,
        step=130,
        rows=[[0, step, 2.5, 1e-3, 0, 0, 0, 0, None, False] for step in (110, 130)],
    )
    reader.poll()
    assert kept(reader)[-3:] == [100, 110, 130]
    write_rows(running, rows_of(100, 140, 1000, np.random.default_rng(1)))
    reader.poll()
    assert kept(reader) == list(range(1, 141))


def test_a_run_is_running_while_its_heart_beats(running: Path) -> None:
    beat(running, step=100, age=2)
    beat(running, step=110)
    reader = RunReader(running)
    reader.poll()
    life = life_of(reader)
    assert life.state == "running"
    assert life.seconds_left == pytest.approx(890 * 0.2, rel=0.01)
    facts = facts_of(reader)
    assert (facts["step"], facts["budget"]) == (110, 1000)
    assert "about 3 min left" in facts["verdict"]


def test_a_killed_run_is_killed_at_once_on_its_machine(running: Path) -> None:
    beat(running, step=110, pid=NOBODY)
    reader = RunReader(running)
    reader.poll()
    assert life_of(reader).state == "killed"
    assert "trainenv run --resume" in facts_of(reader)["verdict"]


def test_a_run_of_another_machine_is_killed_after_some_seconds(
    running: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(running, step=110, age=3600)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    reader = RunReader(running)
    reader.poll()
    assert life_of(reader).state == "killed"
    beat(running, step=111, age=3600)  # its clock is an hour late, and it lives
    reader.poll()
    assert life_of(reader).state == "running"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    assert life_of(reader).state == "killed"


def test_ended_runs(running: Path, tmp_path: Path) -> None:
    reader = RunReader(running)
    reader.poll()
    RunFolder(running).event(Event(100, "interrupted"))
    reader.poll()
    assert life_of(reader).state == "interrupted"
    (running / "summary.json").write_text(json.dumps({"ended": "diverged", "step": 100}))
    reader.poll()
    assert life_of(reader).state == "diverged"
    done = RunReader(make_run(tmp_path / "done"))
    done.poll()
    assert life_of(done).state == "finished"


def test_another_run_in_the_same_place_is_read_anew(running: Path, tmp_path: Path) -> None:
    reader = RunReader(running)
    reader.poll()
    shutil.rmtree(running)
    make_run(running, steps=240)
    reader.poll()
    assert kept(reader) == list(range(1, 241))


def test_what_cannot_be_read_is_named(running: Path) -> None:
    (running / "telemetry" / "part-00001.parquet").write_bytes(b"PAR1 torn")
    (running / "branches" / "100").mkdir(parents=True)
    (running / "branches" / "100" / "decision.json").write_text("{")
    (running / "events.jsonl").mkdir()
    reader = RunReader(running)
    reader.poll()
    notes = sorted(facts_of(reader)["notes"])
    assert [note.split(" can't be read: ")[0] for note in notes] == [
        "branches/100",
        "events.jsonl",
        "telemetry/part-00001.parquet",
    ]
    assert notes[1].endswith("Is a directory")
    assert kept(reader) == list(range(1, 101))
    write_decision(running, decision(1, 101, 101, np.random.default_rng(0)))
    (running / "branches" / "101").replace(running / "branches" / "x")
    shutil.copy(running / "branches" / "x" / "decision.json", running / "branches" / "100")
    reader.poll()
    assert len(facts_of(reader)["notes"]) == 2


def test_nonsense_in_a_folder_is_left_out(running: Path) -> None:
    lines = [{"step": "x", "kind": "fired"}, {"step": 5, "kind": "rewind", "detail": [1]}, {"a": 1}]
    lines += [{"step": 7, "kind": "fired", "detail": {"layer": "a", "layers": 3}}]
    lines += [{"step": 9, "kind": "fired", "detail": {}}]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (running / "events.jsonl").write_text(text)
    (running / "validation.jsonl").write_text(
        '{"step": "1", "loss": 2}\n{"step": 1, "loss": "2"}\n'
    )
    (running / "live.jsonl").write_text('{"time": 1}\n')
    for number, branches in enumerate(
        ([{"interventions": "abc"}], [{"losses": 3, "delta": "x"}], [{}])
    ):
        made = {"number": number, "step": 10, "branches": branches, "planner": 3, "verification": 4}
        write_decision(running, made)
    (running / "summary.json").write_text('{"flops": [1], "step": "many"}')
    reader = RunReader(running)
    reader.poll()
    state = state_of(reader)
    assert [event[0] for event in state["story"]["events"]] == [9]
    assert state["facts"]["state"] == "finished"
    assert [note.split()[0] for note in state["facts"]["notes"]] == ["live.jsonl"]


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text(""), "a file"),
        (lambda path: path.mkdir(), "none"),
        (lambda path: make_run(path / "one"), r"several runs \(one\)"),
    ],
)
def test_a_folder_without_a_run_is_refused(tmp_path: Path, made: Any, found: str) -> None:
    made(tmp_path / "there")
    with pytest.raises(UserError, match=found):
        RunReader(tmp_path / "there")


def test_a_half_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"a": 1}\n{"a"')
    assert tail.read() == [{"a": 1}]
    with path.open("a") as file:
        file.write(": 2}\nnot JSON\n[3]\n")
    assert tail.read() == [{"a": 2}]
    path.write_text('{"a": 4}\n')  # shorter than what was read
    assert tail.read() == [{"a": 4}]


def test_a_picture_has_the_extremes_of_every_stretch() -> None:
    count = 100_000
    rng = np.random.default_rng(0)
    loss = rng.normal(2.0, 0.1, count)
    loss[[12_345, 54_321]] = (9.0, np.nan)
    rows = {
        name: rng.normal(size=count)
        for name in ("lr", "volatility", "entropy", "disagreement", "index", "threshold")
    }
    steps = Steps()
    steps.add(
        {**rows, "line": np.zeros(count), "step": np.arange(1, count + 1), "loss": loss}, firm=True
    )
    shown = picture(steps, [(0, count)], 400)
    assert len(shown["step"]) == 400
    assert max(shown["high"]) == pytest.approx(9.0)
    assert min(shown["low"]) == pytest.approx(np.nanmin(loss), rel=1e-4)
    zoomed = picture(steps, [(0, count)], 400, 12_300, 12_400)
    assert zoomed["step"] == list(range(12_300, 12_401))
    assert zoomed["high"][46] == pytest.approx(9.0)
    assert picture(steps, [(0, count)], 400, 2 * count)["step"] == []
