"""The folder of a run: made once, resumed from its newest checkpoint, readable after any stop."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn, optim

from trainenv.checkpoints.file import BrokenCheckpoint
from trainenv.config.schema import CheckpointConfig, RunConfig, TrainingConfig
from trainenv.records.run_folder import RunFolder, read_events, read_validation
from trainenv.records.telemetry_log import read_telemetry
from trainenv.run import TrainingRun
from trainenv.tools.json_lines import read_lines
from trainenv.training.snapshots import fingerprint
from trainenv.types import Event, Snapshot, Telemetry, UserError

CONFIG = RunConfig.load(
    "tiny", {"name": "mine", "stressors.planted": [{"at": 3, "kind": "artefacts"}]}
)


def telemetry(step: int) -> Telemetry:
    return Telemetry(
        step, step, 8, 3.0, 1.0, 1.0, math.inf, 0.0, "none", 0.1, 1.0, 0.1, 1.0, -1, 0.0
    )


RUN = TrainingRun(
    (model := nn.Linear(2, 2)),
    optim.SGD(model.parameters(), 0.1),
    lambda index: torch.zeros(2, 2),
    TrainingConfig(steps=9),
    objective=lambda model, data: model(data).mean(),
)
EXACT = CheckpointConfig(moments="exact")


def snapshot(step: int) -> Snapshot:
    state = RUN.snapshot()
    return replace(
        state,
        step=step,
        tensors={name: tensor.clone() + step for name, tensor in state.tensors.items()},
    )


def checkpoint(folder: RunFolder, *steps: int, rewinds: int = 0) -> None:
    """Records of a run of some steps and rewinds, as they are in its folder."""
    with folder.recording(0, EXACT) as store:
        for step in steps:
            made = snapshot(step)
            store.save(
                replace(made, state=made.state | ({"rewinds": rewinds} if rewinds else {})),
                wait=True,
            )


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
    with pytest.raises(
        UserError, match="is not empty; give another --out, or --resume to continue the run in it"
    ):
        RunFolder.create(tmp_path / "run", CONFIG)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious"]
    for path in (tmp_path / "run" / "precious", tmp_path / "run" / "precious" / "below"):
        with pytest.raises(
            UserError,
            match=rf"{path.name} must be a folder to record in, found: .*; give another --out",
        ):
            RunFolder.create(path, CONFIG)
    assert (tmp_path / "run" / "precious").read_bytes() == b""


# ── what happens ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_and_validation_are_there_at_once_and_in_order(folder: RunFolder) -> None:
    folder.event(Event(3, "fired", {"index": 3.5}))
    folder.validation(3, 2.5)
    folder.rewound(1)
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
    assert read_events(folder.path)[0]["detail"] == {
        "index": None,
        "of": [None, 1.5, {"deep": [None]}],
    }
    assert read_validation(folder.path) == [{"line": 0, "step": 3, "loss": None}]
    summary = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    assert summary == {"loss": None, "runs": [{"loss": None}], "step": 3}


def test_nothing_happened(folder: RunFolder) -> None:
    assert read_events(folder.path) == []
    assert read_validation(folder.path) == []


@pytest.mark.parametrize(
    "torn", ["{", '{"line": 0, "step": 4, "kind": "fired", "detail": {}', '{"line": 0, "st']
)
def test_a_torn_last_line_never_happened(folder: RunFolder, torn: str) -> None:
    folder.event(Event(3, "fired"))
    with (folder.path / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(torn)
    assert [event["step"] for event in read_events(folder.path)] == [3]


def test_checkpoints_are_kept_as_configured(folder: RunFolder) -> None:
    config = CheckpointConfig(
        every=7, keep_last=2, moments="exact", max_bytes=10**6, on_error="warn"
    )
    with folder.recording(0, config) as store:
        assert (store.every, store.keep_last, store.moments, store.max_bytes, store.on_error) == (
            7,
            2,
            "exact",
            10**6,
            "warn",
        )
        assert store.folder == folder.path / "checkpoints"
    assert folder.line == 0


# ── resume ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_resume_goes_on_from_the_newest_snapshot_in_a_new_line(folder: RunFolder) -> None:
    folder.telemetry.append([telemetry(step) for step in range(1, 5)])
    checkpoint(folder, 2, 4)
    folder.telemetry.append([telemetry(step) for step in range(5, 8)])
    folder.telemetry.flush()
    resumed, found = RunFolder.resume(folder.path)
    assert found.step == 4
    assert fingerprint(found) == fingerprint(snapshot(4))
    assert resumed.line == 0
    with resumed.recording(found.step, EXACT):
        assert resumed.line == 1
    with resumed.recording(found.step, EXACT):
        assert resumed.line == 1  # it is resumed once
    resumed.telemetry.append([telemetry(5), telemetry(6)], line=resumed.line)
    resumed.telemetry.flush()
    kept = read_telemetry(folder.path, kept_only=True)
    assert list(zip(kept["step"], kept["line"])) == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 1)]
    assert len(read_telemetry(folder.path)) == 9


def test_each_resumption_is_a_line_of_its_own_after_those_of_rewinds(folder: RunFolder) -> None:
    folder.rewound(3)
    folder.rewound(2)
    checkpoint(folder, 2, rewinds=2)
    for expected in (3, 4, 5):
        resumed, found = RunFolder.resume(folder.path)
        with resumed.recording(found.step, EXACT):
            assert resumed.line == expected
    lines = [tuple(record.values()) for record in read_lines(folder.path / "lines.jsonl")]
    assert lines == [(1, 3, 1), (2, 2, 2), (3, 2, 2), (4, 2, 2), (5, 2, 2)]


def test_a_rewind_that_was_not_saved_is_none_that_the_run_has_behind_it(folder: RunFolder) -> None:
    folder.rewound(3)
    checkpoint(folder, 5, rewinds=1)
    folder.rewound(2)  # and the process is gone
    resumed, found = RunFolder.resume(folder.path)
    with resumed.recording(found.step, EXACT):
        assert (resumed.line, resumed.rewinds) == (3, 1)
    resumed.rewound(4)
    assert [record["rewinds"] for record in read_lines(folder.path / "lines.jsonl")] == [1, 2, 1, 2]


def test_what_a_killed_process_had_noted_and_not_saved_is_no_event(folder: RunFolder) -> None:
    folder.event(Event(3, "fired"))
    folder.rewound(2)
    folder.event(Event(4, "rewind", {"to": 2}))
    folder.event(Event(5, "fired"))
    checkpoint(folder, 6, rewinds=1)
    folder.event(Event(7, "fired"))
    folder.rewound(5)
    folder.event(Event(7, "rewind", {"to": 5}))  # and the process is gone
    assert len(read_events(folder.path)) == 5  # nobody has gone on without them yet
    resumed, found = RunFolder.resume(folder.path)
    with resumed.recording(found.step, EXACT):
        resumed.event(Event(8, "fired"))
    assert [(event["step"], event["kind"]) for event in read_events(folder.path)] == [
        (3, "fired"), (4, "rewind"), (5, "fired"), (8, "fired")
    ]  # fmt: skip


def test_resuming_alone_writes_nothing(folder: RunFolder) -> None:
    """The snapshot may yet be refused; the line begins once it is recorded on."""
    folder.rewound(1)
    checkpoint(folder, 2)
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


@pytest.mark.parametrize("rest", [b"\0" * 40, b"\xff\xfe", b'{"step": "\xe9"}', b"3"])
def test_a_line_that_a_power_cut_left_is_passed_over(folder: RunFolder, rest: bytes) -> None:
    folder.event(Event(3, "fired"))
    with (folder.path / "events.jsonl").open("ab") as file:
        file.write(rest)
    folder.event(Event(5, "fired"))
    assert [event["step"] for event in read_events(folder.path)] == [3, 5]


def test_nothing_to_resume(folder: RunFolder, tmp_path: Path) -> None:
    for path in (folder.path, tmp_path / "gone"):
        with pytest.raises(
            UserError,
            match=r"expected an interrupted run with checkpoints in .*none; leave out --resume to start one",
        ):
            RunFolder.resume(path)
    assert not (tmp_path / "gone").exists()
    with pytest.raises(
        UserError, match="delete the folder: the run in it stopped before its first one"
    ):
        RunFolder.resume(folder.path)  # which can't be recorded in either


def test_a_finished_run_is_not_resumed(folder: RunFolder) -> None:
    folder.telemetry.append([telemetry(1)])
    checkpoint(folder, 1)
    folder.finish({"ended": "budget spent", "loss": None})
    with pytest.raises(UserError, match="has ended; give --steps N with --resume to extend it"):
        RunFolder.resume(folder.path)
    assert json.loads((folder.path / "summary.json").read_text(encoding="utf-8")) == {
        "ended": "budget spent",
        "loss": None,
    }


def test_finishing_flushes_and_leaves_nothing_temporary(folder: RunFolder) -> None:
    folder.telemetry.append([telemetry(1)])
    folder.finish({})
    assert read_telemetry(folder.path)["step"].tolist() == [1]
    assert sorted(p.name for p in folder.path.iterdir()) == [
        "config.yaml",
        "summary.json",
        "telemetry",
    ]


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def test_a_torn_checkpoint_is_passed_over_with_a_warning(folder: RunFolder) -> None:
    checkpoint(folder, 2, 4, 6)
    tear(folder.path / "checkpoints" / "cp_6.ptz")
    with pytest.warns(UserWarning, match=r"cp_6\.ptz is no whole checkpoint.*cp_4\.ptz"):
        resumed, found = RunFolder.resume(folder.path)
    assert fingerprint(found) == fingerprint(snapshot(4))
    with resumed.recording(found.step, EXACT) as store:
        store.save(snapshot(6), wait=True)
    assert fingerprint(RunFolder.resume(folder.path)[1]) == fingerprint(snapshot(6))


def test_the_newest_is_the_one_that_was_saved_last_whatever_its_step(folder: RunFolder) -> None:
    checkpoint(folder, 2, 8, 4)
    assert RunFolder.resume(folder.path)[1].step == 4


def test_nothing_that_is_whole(folder: RunFolder) -> None:
    checkpoint(folder, 2)
    tear(folder.path / "checkpoints" / "cp_2.ptz")
    with pytest.raises(BrokenCheckpoint, match=r"cp_2\.ptz"):
        RunFolder.resume(folder.path)


def test_what_another_process_went_on_with_is_resumed_anew(folder: RunFolder) -> None:
    checkpoint(folder, 2)
    resumed, _ = RunFolder.resume(folder.path)
    checkpoint(folder, 4)
    with (
        pytest.raises(UserError, match="another process has continued it"),
        resumed.recording(2, EXACT),
    ):
        pass
    assert not (folder.path / "lines.jsonl").exists()
