"""Trackers: what arrives equals the record of the run, and one that fails or is slow touches nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.tracked_runs import DECISION, STEPS, branches, record
from trainenv.config.schema import RunConfig
from trainenv.records.telemetry_log import read_telemetry
from trainenv.trackers import LiveTracker, RunStart, Step, open_trackers
from trainenv.trackers.contract import READINGS, TAGS
from trainenv.trackers.opening import TRACKERS
from trainenv.types import UserError

COLUMNS = TAGS | READINGS


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each tracker writes below this folder, and none asks the network."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_DIR", str(here))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return here


def follow(name: str, path: Path) -> Path:
    """Record a run with one tracker."""
    return record(path, open_trackers(RunConfig.load("tiny", {"trackers": name})))


def expected(folder: Path, *, kept_only: bool) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each finite number in the telemetry, by tag."""
    rows = read_telemetry(folder, kept_only=kept_only)
    found: dict[str, list[tuple[int, float]]] = {}
    for column, tag in COLUMNS.items():
        known = rows[rows[column].notna()]
        found[tag] = list(zip(known["step"].tolist(), known[column].tolist()))
    return found


def test_tensorboard_gets_the_kept_history(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    folder = follow("tensorboard", tmp_path / "run")

    def read(name: str) -> Any:
        found = event_accumulator.EventAccumulator(
            str(folder / "tensorboard" / name), size_guidance={"scalars": 0, "tensors": 0}
        )
        return found.Reload()

    kept = read(".")
    for tag, points in expected(folder, kept_only=True).items():
        arrived = [(point.step, point.value) for point in kept.Scalars(tag)]
        assert [step for step, _ in arrived] == [step for step, _ in points], tag
        assert [x for _, x in arrived] == pytest.approx([x for _, x in points], rel=1e-6), tag
    validation = [(point.step, point.value) for point in kept.Scalars("loss/validation")]
    assert validation == [(0, 5.5), (STEPS, 2.25)]
    compute = [point.step for point in read("by_compute").Scalars("loss/training")]
    assert compute == list(range(1, 48 + 20 + 1))  # MFLOPs of all steps, the undone ones included
    (table,) = read("decisions").Tensors("decisions/text_summary")
    assert "LR ×0.8, ZClip" in table.tensor_proto.string_val[0].decode()
    for place, losses in enumerate(branches(folder)):
        steps = read(f"branches/decision-1/branch-{place}").Scalars("loss/training")
        assert [point.step for point in steps] == [DECISION + 1 + n for n in range(len(losses))]
        assert [point.value for point in steps] == pytest.approx(losses)
    assert "The run" in (folder / "tensorboard" / "report.html").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow_gets_every_step(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    folder = follow("mlflow", tmp_path / "run")
    client = MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("trainenv").experiment_id])
    (main,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    run_id = main.info.run_id
    assert main.info.status == "FINISHED"
    assert main.data.params["optimizer.lr"] == str(RunConfig.load("tiny").optimizer.lr)
    assert not [key for key in main.data.params if key.startswith("alerts")]
    for tag, points in expected(folder, kept_only=False).items():
        arrived = [(point.step, point.value) for point in client.get_metric_history(run_id, tag)]
        assert sorted(arrived) == sorted(points), tag
    lines = {(p.step, p.value) for p in client.get_metric_history(run_id, "line")}
    assert lines == {(n, 0.0) for n in range(1, 49)} | {(n, 1.0) for n in range(41, STEPS + 1)}
    compute = client.get_metric_history(run_id, "compute/flops")
    assert max(point.value for point in compute) == pytest.approx(68e6)
    table = client.load_table(main.info.experiment_id, "decisions.json", [run_id])
    assert table["result"].tolist()[0].startswith("LR ×0.8, ZClip")
    assert [a.path for a in client.list_artifacts(run_id)] == ["decisions.json", "report.html"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == run_id]
    assert len(children) == len(branches(folder))
    for child in children:
        losses = branches(folder)[int(child.data.tags["branch"])]
        steps = client.get_metric_history(child.info.run_id, "loss/training")
        assert [(p.step, p.value) for p in steps] == [(41 + n, x) for n, x in enumerate(losses)]


def logged(file: bytes) -> Iterator[bytes]:
    """The records of an offline file of W&B: a log in blocks of 32 kB, as LevelDB has it."""
    block, header = 32768, 7
    place, whole = header, b""
    while place + header <= len(file):
        if block - place % block < header:  # the rest of a block is padding
            place += block - place % block
            continue
        length = int.from_bytes(file[place + 4 : place + 6], "little")
        kind = file[place + 6]
        whole += file[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_writes_offline(tmp_path: Path, stores: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    folder = follow("wandb", tmp_path / "run")
    found: dict[str, list[dict[str, Any]]] = {}
    groups = set()
    for path in sorted(stores.glob("wandb/offline-run-*/*.wandb")):
        kind = ""
        for data in logged(path.read_bytes()):
            one = wandb_internal_pb2.Record()
            one.ParseFromString(data)
            if one.HasField("run"):
                kind = one.run.job_type or kind
                groups.add(one.run.run_group)
            if one.HasField("history"):
                found.setdefault(kind, []).append(
                    {
                        (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                        for item in one.history.item
                    }
                )
    assert len(groups) == 1
    for tag, points in expected(folder, kept_only=False).items():
        arrived = [(row["step"], row[tag]) for row in found["run"] if tag in row]
        assert arrived == points, tag
    assert [row["loss/validation"] for row in found["run"] if "loss/validation" in row] == [
        5.5,
        2.25,
    ]
    rows = [row["decisions/nrows"] for row in found["run"] if "decisions/nrows" in row]
    assert rows == [1]
    assert any(key.startswith("report") for row in found["run"] for key in row)
    losses = sorted(x for one in branches(folder) for x in one)
    assert sorted(row["loss/training"] for row in found["branch"]) == losses


@pytest.mark.filterwarnings("ignore")  # of the packages that it brings
def test_trackio_gets_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    trackio = pytest.importorskip("trackio")
    folder = follow("trackio", tmp_path / "run")
    name = json.loads((folder / "trackers.json").read_text())["trackio"]["name"]
    storage = trackio.SQLiteStorage
    logs = storage.get_logs("trainenv", name)
    for tag, points in expected(folder, kept_only=False).items():
        arrived = [(row["step"], row[tag]) for row in logs if tag in row]
        assert sorted(arrived) == sorted(points), tag
    assert max(row.get("compute/flops", 0) for row in logs) == pytest.approx(68e6)
    assert any("decisions" in row for row in logs)
    assert any("report" in row for row in logs)
    children = [run for run in storage.get_runs("trainenv") if str(run).startswith(f"{name}/")]
    assert len(children) == len(branches(folder))
    losses = [
        [row["loss/training"] for row in storage.get_logs("trainenv", child)] for child in children
    ]
    assert sorted(losses) == sorted(branches(folder))


class Recorder:
    """Tracker that keeps what it gets, and may fail or wait."""

    def __init__(self, *, fail_at: str = "", gate: threading.Event | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.fail_at = fail_at
        self.gate = gate

    def _take(self, kind: str, value: Any) -> None:
        if self.gate is not None:
            assert self.gate.wait(60)
        if kind == self.fail_at:
            raise RuntimeError("the server is gone")
        self.calls.append((kind, value))

    def start(self, run: RunStart) -> Mapping[str, str]:
        self._take("start", run)
        return {"id": "7"}

    def steps(self, steps: Sequence[Step]) -> None:
        self._take("steps", steps)

    def event(self, record: Mapping[str, Any]) -> None:
        self._take("event", record)

    def finish(self, summary: Mapping[str, Any] | None, report: Path | None) -> None:
        self._take("finish", (summary, report is not None and report.is_file()))


def test_the_four_calls_in_order(tmp_path: Path) -> None:
    tracker = Recorder()
    folder = record(tmp_path / "run", [LiveTracker("mine", tracker)])
    kinds = [kind for kind, _ in tracker.calls]
    assert kinds[0] == "start"
    assert kinds[-1] == "finish"
    assert tracker.calls[-1][1][1], "the report is attached"
    steps = [
        (one.step, one.line) for kind, value in tracker.calls if kind == "steps" for one in value
    ]
    rows = read_telemetry(folder)
    assert steps == list(zip(rows["step"], rows["line"]))
    events = [value for kind, value in tracker.calls if kind == "event"]
    names = [event["kind"] for event in events]
    assert names == ["validation", "fired", "rewind", "decision", "validation"]
    assert len(events[3]["decision"]["branches"]) == 7
    assert json.loads((folder / "trackers.json").read_text()) == {"mine": {"id": "7"}}


@pytest.mark.parametrize("call", ["start", "steps", "event", "finish"])
def test_a_tracker_that_fails_is_one_warning(tmp_path: Path, call: str) -> None:
    other = Recorder()
    observers = [LiveTracker("mine", Recorder(fail_at=call)), LiveTracker("other", other)]
    with pytest.warns(UserWarning, match="the tracker mine follows the run no more") as warned:
        folder = record(tmp_path / "run", observers)
    assert len(warned) == 1
    assert "the server is gone" in str(warned[0].message)
    assert len(read_telemetry(folder)) == 48 + 20
    assert other.calls[-1][0] == "finish"


def test_a_tracker_that_hangs_holds_up_nothing(tmp_path: Path) -> None:
    gate = threading.Event()
    tracker = LiveTracker("mine", Recorder(gate=gate), patience=0.05)
    with pytest.warns(UserWarning, match="it was not done"):
        record(tmp_path / "run", [tracker])
    gate.set()


def test_a_tracker_that_is_slow_loses_steps_and_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainenv.trackers.live._MOST", 20)
    gate = threading.Event()
    tracker = Recorder(gate=gate)
    with pytest.warns(UserWarning, match="36 steps less"):
        record(
            tmp_path / "run",
            [LiveTracker("mine", tracker)],
            during=lambda: None if gate.is_set() else _later(gate),
        )
    assert [kind for kind, _ in tracker.calls].count("event") == 5


def _later(gate: threading.Event) -> None:
    threading.Timer(0.2, gate.set).start()


def test_a_missing_package_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TRACKERS:
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(UserError, match=rf"pip install 'trainenv\[{name}\]'"):
            open_trackers(RunConfig.load("tiny", {"trackers": [name]}))


def test_names_are_checked_and_may_be_one_text() -> None:
    assert RunConfig.load("tiny", {"trackers": "wandb, mlflow"}).trackers == ("wandb", "mlflow")
    with pytest.raises(UserError, match="trackers"):
        RunConfig.load("tiny", {"trackers": ["tensorbord"]})
