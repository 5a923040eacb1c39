"""The folder of a run: made once, resumed from its newest snapshot, readable after any stop."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from trainenv import snapshots
from trainenv.config import RunConfig, TrainingConfig
from trainenv.records.folder import RunFolder, read_events, read_validation
from trainenv.records.parquet import read_telemetry
from trainenv.snapshots import capture, fingerprint
from trainenv.types import Event, Snapshot, Telemetry, UserError

CONFIG = RunConfig.load("tiny", {"name": "mine", "stressors.planted": [{"at": 3, "kind": "artefacts"}]})


def telemetry(step: int) -> Telemetry:
    return Telemetry(step, step, 8, 3.0, 1.0, 1.0, math.inf, 0.0, "none", 0.1, 1.0, 0.1, 1.0, -1, 0.0)


def snapshot(step: int) -> Snapshot:
    return capture(step, {"model": {"w": torch.full((3,), float(step))}})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG)


# ── create ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_create_writes_a_configuration_that_loads_as_itself(folder: RunFolder) -> None:
    assert RunConfig.load(folder.path / "config.yaml") == CONFIG
    assert folder.line == 0


def test_create_for_a_run_of_one_s_own(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path / "deep" / "run", TrainingConfig(steps=3))
    assert "steps: 3" in (made.path / "config.yaml").read_text(encoding="utf-8")


def test_create_finds_the_first_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [RunFolder.create(None, CONFIG).path for _ in range(3)]
    assert made == [Path("runs/mine"), Path("runs/mine-2"), Path("runs/mine-3")]
    assert RunFolder.create(None, RunConfig.load("tiny")).path == Path("runs/tiny")


def test_create_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert (RunFolder.create(tmp_path / "run", CONFIG).path / "config.yaml").is_file()


def test_create_never_writes_over_anything(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(UserError, match="is not empty; give another --out, or --resume to go on with the run in it"):
        RunFolder.create(tmp_path / "run", CONFIG)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious"]
    for path in (tmp_path / "run" / "precious", tmp_path / "run" / "precious" / "below"):
        with pytest.raises(UserError, match=rf"{path.name} must be a folder to record in, found: .*; give another --out"):
            RunFolder.create(path, CONFIG)
    assert (tmp_path / "run" / "precious").read_bytes() == b""


# ── what happens ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_and_validation_are_there_at_once_and_in_order(folder: RunFolder) -> None:
    folder.event(Event(3, "fired", {"index": 3.5}))
    folder.validation(3, 2.5)
    folder.new_line(1)
    folder.event(Event(2, "diverged"))
    folder.validation(2, math.nan)
    assert read_events(folder.path) == [
        {"line": 0, "step": 3, "kind": "fired", "detail": {"index": 3.5}},
        {"line": 1, "step": 2, "kind": "diverged", "detail": {}},
    ]
    first, second = read_validation(folder.path)
    assert first == {"line": 0, "step": 3, "loss": 2.5}
    assert second == {"line": 1, "step": 2, "loss": None}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_has_no_numbers_that_are_not_finite(folder: RunFolder, number: float) -> None:
    folder.event(Event(3, "fired", {"index": number, "of": [number, 1.5, {"deep": (number,)}]}))
    folder.validation(3, number)
    folder.finish({"loss": number, "runs": [{"loss": number}], "step": 3})
    for path in folder.path.glob("*.json*"):
        assert not re.search(r"NaN|Infinity", path.read_text(encoding="utf-8"))
    assert read_events(folder.path)[0]["detail"] == {"index": None, "of": [None, 1.5, {"deep": [None]}]}
    assert read_validation(folder.path) == [{"line": 0, "step": 3, "loss": None}]
    summary = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    assert summary == {"loss": None, "runs": [{"loss": None}], "step": 3}


def test_nothing_happened(folder: RunFolder) -> None:
    assert read_events(folder.path) == []
    assert read_validation(folder.path) == []


@pytest.mark.parametrize("torn", ["{", '{"line": 0, "step": 4, "kind": "fired", "detail": {}', '{"line": 0, "st'])
def test_a_torn_last_line_never_happened(folder: RunFolder, torn: str) -> None:
    folder.event(Event(3, "fired"))
    with (folder.path / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(torn)
    assert [event["step"] for event in read_events(folder.path)] == [3]


def test_a_checkpoint_has_the_telemetry_up_to_it_on_disk(folder: RunFolder) -> None:
    folder.telemetry.append([telemetry(1), telemetry(2)])
    folder.checkpoint(snapshot(2))
    assert read_telemetry(folder.path)["step"].tolist() == [1, 2]
    assert fingerprint(snapshots.load(folder.path / "last.safetensors")) == fingerprint(snapshot(2))
    folder.checkpoint(snapshot(4))
    assert snapshots.load(folder.path / "last.safetensors").step == 4


# ── resume ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_resume_goes_on_from_the_newest_snapshot_in_a_new_line(folder: RunFolder) -> None:
    folder.telemetry.append([telemetry(step) for step in range(1, 5)])
    folder.checkpoint(snapshot(4))
    folder.telemetry.append([telemetry(step) for step in range(5, 8)])
    folder.telemetry.flush()
    resumed, found = RunFolder.resume(folder.path)
    assert found.step == 4
    assert fingerprint(found) == fingerprint(snapshot(4))
    assert resumed.line == 0
    resumed.new_line(found.step)
    assert resumed.line == 1
    resumed.telemetry.append([telemetry(5), telemetry(6)], line=resumed.line)
    resumed.telemetry.flush()
    kept = read_telemetry(folder.path, kept_only=True)
    assert list(zip(kept["step"], kept["line"])) == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 1)]
    assert len(read_telemetry(folder.path)) == 9


def test_each_resumption_is_a_line_of_its_own_after_those_of_rewinds(folder: RunFolder) -> None:
    folder.new_line(3)
    folder.new_line(2)
    folder.checkpoint(snapshot(2))
    for expected in (3, 4, 5):
        resumed, found = RunFolder.resume(folder.path)
        resumed.new_line(found.step)
        assert resumed.line == expected
    lines = [json.loads(line) for line in (folder.path / "lines.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [{"line": n, "step": 3 if n == 1 else 2} for n in range(1, 6)]


def test_resuming_alone_writes_nothing(folder: RunFolder) -> None:
    """The snapshot may yet be refused; the line begins once it is restored."""
    folder.new_line(1)
    folder.checkpoint(snapshot(2))
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert [RunFolder.resume(folder.path)[0].line for _ in range(3)] == [1, 1, 1]
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_what_follows_a_torn_line_is_read(folder: RunFolder) -> None:
    folder.event(Event(3, "fired"))
    with (folder.path / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"line": 0, "st')
    folder.event(Event(5, "fired"))
    folder.event(Event(6, "fired"))
    assert [event["step"] for event in read_events(folder.path)] == [3, 5, 6]


def test_nothing_to_resume(folder: RunFolder, tmp_path: Path) -> None:
    for path in (folder.path, tmp_path / "gone"):
        with pytest.raises(
            UserError, match=r"expected an interrupted run with a last\.safetensors in .*none; leave out --resume to start one"
        ):
            RunFolder.resume(path)
    assert not (tmp_path / "gone").exists()


def test_a_finished_run_is_not_resumed(folder: RunFolder) -> None:
    folder.telemetry.append([telemetry(1)])
    folder.checkpoint(snapshot(1))
    folder.finish({"ended": "budget spent", "loss": None})
    with pytest.raises(UserError, match="has ended; give another --out for a new one"):
        RunFolder.resume(folder.path)
    assert json.loads((folder.path / "summary.json").read_text(encoding="utf-8")) == {"ended": "budget spent", "loss": None}


def test_finishing_flushes_and_leaves_nothing_temporary(folder: RunFolder) -> None:
    folder.telemetry.append([telemetry(1)])
    folder.finish({})
    assert read_telemetry(folder.path)["step"].tolist() == [1]
    assert sorted(p.name for p in folder.path.iterdir()) == ["config.yaml", "summary.json", "telemetry"]


def test_a_spoilt_snapshot_is_named(folder: RunFolder) -> None:
    (folder.path / "last.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"last\.safetensors is not a readable snapshot"):
        RunFolder.resume(folder.path)
