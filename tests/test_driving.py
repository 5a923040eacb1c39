"""Driving a run: validation at its boundaries, events, lines of history, checkpoints and every way to end."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

from trainenv import Intervention, TrainingConfig, TrainingRun
from trainenv.checkpoints.disk import Disk
from trainenv.checkpoints.store import CheckpointStore
from trainenv.driving import Responder, Response, drive, resume
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.records.folder import RunFolder, read_events, read_validation
from trainenv.records.lines import read_lines
from trainenv.records.parquet import read_telemetry
from trainenv.snapshots import fingerprint
from trainenv.types import Event, Reading, Snapshot, Telemetry, UserError


def tokens(index: int) -> Tensor:
    return torch.randint(0, 8, (2, 9), generator=torch.Generator().manual_seed(index))


class Bigram(nn.Module):
    """Logits of the next token from the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 8)
        nn.init.zeros_(self.table.weight)

    def forward(self, seen: Tensor) -> Tensor:
        logits: Tensor = self.table(seen)
        return logits


def toy(steps: int = 40, every: int = 0, lr: float = 1e-2, **more: Any) -> TrainingRun:
    """A run of a few thousand steps a second."""
    model = Bigram()
    monitor = {"block": 8, "probe_every": 0}
    settings = {"steps": steps, "validation": {"every": every}, "monitor": monitor, "schedule": {"warmup": 0}} | more
    config = TrainingConfig(**{"name": "toy", "clip": {"policy": "none"}} | settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    return TrainingRun(model, optimizer, tokens, config, validation=[tokens(10**6)])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", TrainingConfig(steps=1))


def newest(folder: RunFolder) -> Snapshot:
    """The checkpoint that was saved last."""
    return CheckpointStore(folder.path / "checkpoints").load()


def strict(text: str) -> Any:
    """JSON as other languages read it: without NaN and infinities."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def fires_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Each of `steps` fires the first time that the run comes by."""
    left = list(steps)

    def update(index: UncertaintyIndex, telemetry: Telemetry) -> Reading:
        fired = telemetry.step in left
        if fired:
            left.remove(telemetry.step)
        return Reading(index=9.0 if fired else 0.0, threshold=3.0, fired=fired)

    monkeypatch.setattr(UncertaintyIndex, "update", update)


@dataclass
class Rewinder(Responder):
    """Goes back to the start once, at `at`; remembers what it was called with."""

    at: int = 10**9
    windows: list[list[int]] = field(default_factory=list)
    start: Snapshot | None = None

    def respond(self, run: TrainingRun, window: Sequence[Telemetry], /) -> Response:
        self.windows.append([t.step for t in window])
        if self.start is None:
            self.start = run.snapshot()
        if run.step < self.at:
            return Response()
        seen, self.at = run.step, 10**9
        run.rewind(self.start)
        run.apply(Intervention(lr_scale=0.5))
        rewind = Event(seen, "rewind", {"to": self.start.step, "lr_scale": run.lr_scale})
        return Response(events=[rewind, Event(run.step, "intervention", {"lr_scale": 0.5})])


# ── blocks and validation ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [(40, 0, [0, 40]), (40, 10, [0, 10, 20, 30, 40]), (35, 10, [0, 10, 20, 30, 35]), (35, 100, [0, 35]), (1, 1, [0, 1])],
)
def test_validation_at_its_steps_at_the_start_and_at_the_end(
    steps: int, every: int, expected: list[int], folder: RunFolder
) -> None:
    run = toy(steps, every)
    summary = drive(run, folder)
    found = read_validation(folder.path)
    assert [v["step"] for v in found] == expected
    assert {v["line"] for v in found} == {0}
    assert summary["first_validation_loss"] == found[0]["loss"] == pytest.approx(math.log(8))
    assert summary["final_validation_loss"] == found[-1]["loss"] == run.evaluate()


def test_blocks_end_at_boundaries(folder: RunFolder) -> None:
    responder, watched = Rewinder(), []
    drive(toy(27, 12), folder, responder=responder, watch=lambda run, window: watched.append([t.step for t in window]))
    expected = [(1, 8), (9, 12), (13, 20), (21, 24), (25, 27)]
    assert responder.windows == watched == [list(range(first, last + 1)) for first, last in expected]


def test_driving_changes_nothing_of_the_run(folder: RunFolder) -> None:
    driven, straight = toy(40, 12, checkpoints={"every": 8}), toy(40, 12)
    drive(driven, folder)
    straight.advance(40)
    assert driven.fingerprint() == straight.fingerprint()


def test_summary_of_a_run_that_spent_its_budget(folder: RunFolder) -> None:
    run = toy(40)
    summary = drive(run, folder)
    assert strict((folder.path / "summary.json").read_text(encoding="utf-8")) == summary
    assert summary["ended"] == "budget spent"
    assert (summary["name"], summary["seed"], summary["step"]) == ("toy", 0, 40)
    assert (summary["fired"], summary["rewinds"]) == (0, 0)
    assert summary["flops"] == run.ledger.as_dict()
    assert summary["final_learning_rate"] == read_telemetry(folder.path)["lr"].iloc[-1]
    assert summary["seconds"] >= 0
    assert summary["ms_per_step"] > 0
    assert newest(folder).step == 40


def test_a_run_goes_on_from_where_it_is(folder: RunFolder) -> None:
    run = toy(40, 12)
    run.advance(20)
    drive(run, folder)
    assert [v["step"] for v in read_validation(folder.path)] == [20, 24, 36, 40]
    assert list(read_telemetry(folder.path)["step"]) == list(range(21, 41))


def test_a_run_with_nothing_left_to_do(folder: RunFolder) -> None:
    run = toy(8)
    last = run.advance(8)[-1]
    summary = drive(run, folder)
    assert (summary["ended"], summary["step"], summary["final_learning_rate"]) == ("budget spent", 8, last.lr)
    assert summary["first_validation_loss"] == summary["final_validation_loss"] == run.evaluate()
    assert len(read_validation(folder.path)) == 1
    assert (folder.path / "summary.json").is_file()


# ── events and lines ────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_alarm_is_an_event(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    fires_at(monkeypatch, 3, 5, 24)
    assert drive(toy(40), folder)["fired"] == 3
    events = read_events(folder.path)
    assert [(e["step"], e["kind"], e["line"]) for e in events] == [(3, "fired", 0), (5, "fired", 0), (24, "fired", 0)]
    losses = read_telemetry(folder.path).set_index("step")["loss"]
    for event in events:
        assert event["detail"] == {"index": 9.0, "loss": losses[event["step"]]}
    assert list(read_telemetry(folder.path).query("fired")["step"]) == [3, 5, 24]


def test_a_rewind_starts_a_new_line(folder: RunFolder) -> None:
    run = toy(40)
    summary = drive(run, folder, responder=Rewinder(at=24))
    assert (summary["rewinds"], summary["ended"], summary["step"]) == (1, "budget spent", 24)
    assert read_lines(folder.path / "lines.jsonl") == [{"line": 1, "step": 8, "rewinds": 1}]
    assert [(e["line"], e["step"], e["kind"]) for e in read_events(folder.path)] == [(1, 24, "rewind"), (1, 8, "intervention")]
    everything, kept = read_telemetry(folder.path), read_telemetry(folder.path, kept_only=True)
    assert list(everything["step"]) == [*range(1, 25), *range(9, 25)]
    assert list(everything["line"]) == [0] * 24 + [1] * 16
    assert list(kept["step"]) == list(range(1, 25))
    assert list(kept["line"]) == [0] * 8 + [1] * 16
    assert set(kept["lr_scale"][:8]) == {1.0}
    assert set(kept["lr_scale"][8:]) == {0.5}
    assert run.ledger["rewound"] == pytest.approx(run.ledger["main"] * 16 / 24)


def test_a_validation_step_that_comes_again_after_a_rewind_is_validated_again(folder: RunFolder) -> None:
    """It is of another line, and so another loss."""
    drive(toy(40, 16), folder, responder=Rewinder(at=24))
    found = read_validation(folder.path)
    assert [(v["line"], v["step"]) for v in found] == [(0, 0), (0, 16), (1, 16), (1, 24)]
    assert found[1]["loss"] != found[2]["loss"]


def test_any_event_of_a_responder_is_recorded(folder: RunFolder) -> None:
    class Noting(Responder):
        def respond(self, run: TrainingRun, window: Sequence[Telemetry], /) -> Response:
            return Response(events=[Event(run.step, "intervention", {"n": len(window)})])

    assert drive(toy(20), folder, responder=Noting())["rewinds"] == 0
    assert [(e["step"], e["detail"]["n"]) for e in read_events(folder.path)] == [(8, 8), (16, 8), (20, 4)]
    assert not (folder.path / "lines.jsonl").exists()


def test_a_responder_says_when_it_is_asked_and_what_is_saved(folder: RunFolder) -> None:
    seen: list[int] = []

    class Early(Responder):
        def within(self, run: TrainingRun, /) -> int:
            return (3 - run.step) % 5 or 5

        def respond(self, run: TrainingRun, window: Sequence[Telemetry], /) -> Response:
            seen.append(run.step)
            return Response(save=run.step in {13, 16})

    drive(toy(20, checkpoints={"every": 16}), folder, responder=Early())
    assert seen == [3, 8, 13, 16, 18, 20]  # blocks of eight, checkpoints and the end go before it
    assert CheckpointStore(folder.path / "checkpoints").steps() == [0, 13, 16, 20]


@dataclass
class Ahead(Responder):
    """Trains five steps of its own at step 8, which the run keeps; remembers all that it was told."""

    told: list[list[float]] = field(default_factory=list)
    begun: int = 0

    def begin(self, run: TrainingRun, folder: RunFolder, store: CheckpointStore, /) -> None:
        self.begun += 1

    def respond(self, run: TrainingRun, window: Sequence[Telemetry], /) -> Response:
        return Response(kept=run.advance(5)) if run.step == 8 else Response()

    def validated(self, step: int, loss: float, /) -> None:
        self.told.append([step, loss])

    def state_dict(self) -> dict[str, Any]:
        return {"told": self.told}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.told = state["told"]


def test_steps_that_a_responder_trained_are_the_runs_own(folder: RunFolder) -> None:
    """They are recorded, counted, and a validation that they pass over is made up for where they end."""
    run, responder = toy(40, 12), Ahead()
    drive(run, folder, responder=responder)
    alone = toy(40, 12)
    alone.advance(40)
    assert run.fingerprint() == alone.fingerprint()
    assert list(read_telemetry(folder.path, kept_only=True)["step"]) == list(range(1, 41))
    assert [v["step"] for v in read_validation(folder.path)] == [0, 13, 24, 36, 40]
    assert responder.begun == 1
    assert responder.told == [[v["step"], v["loss"]] for v in read_validation(folder.path)[1:]]


def test_what_a_responder_remembers_comes_back_with_the_run(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", TrainingConfig(steps=1))
    drive(toy(40, 12), folder, responder=Ahead(), stop=lambda: len(read_validation(folder.path)) > 2)
    run, responder = toy(40, 12), Ahead()
    folder, snapshot = resume(tmp_path / "run", run, responder)
    assert responder.told == [[v["step"], v["loss"]] for v in read_validation(folder.path)[1:]]
    assert run.step == snapshot.step == 24
    drive(run, folder, responder=responder)
    assert [step for step, _ in responder.told] == [13, 24, 36, 40]


# ── ways to end ─────────────────────────────────────────────────────────────────────────────────────────────────────


def breaks_at(run: TrainingRun, monkeypatch: pytest.MonkeyPatch, step: int, until: int = 10**9) -> TrainingRun:
    """The loss is NaN while steps `step` to `until` are trained."""
    objective = run.objective

    def broken(model: nn.Module, micro: Any, /) -> Tensor:
        loss = objective(model, micro)
        return loss * math.nan if step <= run.step + 1 <= until else loss

    monkeypatch.setattr(run, "objective", broken)
    return run


def test_a_run_that_diverges_ends_with_what_there_is(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    fires_at(monkeypatch)
    summary = drive(breaks_at(toy(40), monkeypatch, 11), folder)
    assert (summary["ended"], summary["step"]) == ("diverged", 16)
    assert summary["final_validation_loss"] is None
    assert summary["first_validation_loss"] == pytest.approx(math.log(8))
    assert strict((folder.path / "summary.json").read_text(encoding="utf-8")) == summary
    assert [e["kind"] for e in read_events(folder.path)] == ["diverged"]
    rows = read_telemetry(folder.path)
    assert list(rows["step"]) == list(range(1, 17))
    assert rows["loss"][:10].notna().all()
    assert not rows["loss"][10:].map(lambda value: value is not None and math.isfinite(value)).any()
    assert newest(folder).step == 16


def test_a_learning_rate_that_is_far_too_high(folder: RunFolder) -> None:
    def explosive(model: nn.Module, micro: Any, /) -> Tensor:
        return sum((p.double() ** 4).sum() for p in model.parameters()).float()  # type: ignore[union-attr]

    model = Bigram()
    nn.init.ones_(model.table.weight)
    config = TrainingConfig(
        steps=400,
        clip={"policy": "none"},
        schedule={"warmup": 0},
        monitor={"block": 8, "probe_every": 0},
        validation={"every": 5},
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    run = TrainingRun(model, optimizer, tokens, config, objective=explosive, validation=[tokens(0)])
    summary = drive(run, folder)
    assert summary["ended"] == "diverged"
    assert summary["step"] <= 10
    assert summary["final_validation_loss"] is None
    assert read_events(folder.path)[-1]["kind"] == "diverged"


def test_a_loss_that_recovers_within_its_block_is_no_divergence(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    run = breaks_at(toy(40, clip={"policy": "zclip"}), monkeypatch, 11, 13)
    summary = drive(run, folder)
    assert (summary["ended"], summary["step"]) == ("budget spent", 40)


def test_divergence_that_was_rewound_is_none(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    responder = Rewinder(at=16)
    run = toy(40)
    objective = run.objective

    def at_first(model: nn.Module, micro: Any, /) -> Tensor:
        return objective(model, micro) * (math.nan if run.step >= 10 and responder.at == 16 else 1.0)

    monkeypatch.setattr(run, "objective", at_first)
    summary = drive(run, folder, responder=responder)
    assert (summary["ended"], summary["rewinds"], summary["step"]) == ("budget spent", 1, 32)
    assert math.isfinite(summary["final_validation_loss"])


def test_stop_is_asked_after_each_block_and_leaves_no_summary(folder: RunFolder) -> None:
    asked = iter([False, True])
    run = toy(40)
    summary = drive(run, folder, stop=lambda: next(asked))
    assert (summary["ended"], summary["step"]) == ("interrupted", 16)
    assert not (folder.path / "summary.json").exists()
    assert newest(folder).step == 16
    assert [(e["kind"], e["step"]) for e in read_events(folder.path)] == [("interrupted", 16)]
    assert len(read_telemetry(folder.path)) == 16


@pytest.mark.parametrize("stops_after", [1, 2, 3, 6])
def test_resuming_in_another_process_gives_the_same_run(stops_after: int, folder: RunFolder, tmp_path: Path) -> None:
    """The bits, and what the summary says of it: the ledger, the first validation."""
    asked = iter([False] * (stops_after - 1) + [True])
    drive(toy(40, 12), folder, stop=lambda: next(asked))
    resumed, snapshot = RunFolder.resume(folder.path)
    run = toy(40, 12)
    run.restore(snapshot)
    run.ledger.load(snapshot.state["ledger"])
    summary = drive(run, resumed)
    straight = toy(40, 12)
    alone = drive(straight, RunFolder.create(tmp_path / "straight", straight.config))
    assert run.fingerprint() == straight.fingerprint()
    changing = {"folder": "", "seconds": 0, "ms_per_step": 0}
    assert summary | changing == alone | changing
    assert [v["step"] for v in read_validation(folder.path)] == [0, 12, 24, 36, 40]
    assert list(read_telemetry(folder.path, kept_only=True)["step"]) == list(range(1, 41))


def test_counts_and_first_validation_of_a_resumed_run_are_of_all_of_it(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    fires_at(monkeypatch, 3, 20, 22)
    run = toy(40)
    asked = iter([False, False, True])
    stopped = drive(run, folder, responder=Rewinder(at=16), stop=lambda: next(asked))
    assert (stopped["ended"], stopped["step"], stopped["fired"], stopped["rewinds"]) == ("interrupted", 16, 1, 1)
    resumed, snapshot = RunFolder.resume(folder.path)
    run.restore(snapshot)
    summary = drive(run, resumed)
    assert (summary["ended"], summary["step"], summary["fired"], summary["rewinds"]) == ("budget spent", 32, 3, 1)
    assert summary["first_validation_loss"] == pytest.approx(math.log(8))
    assert [record["step"] for record in read_lines(folder.path / "lines.jsonl")] == [8, 16]


def test_asked_to_stop_in_the_last_block(folder: RunFolder) -> None:
    run = toy(16)
    summary = drive(run, folder, stop=lambda: run.done)
    assert (summary["ended"], summary["step"]) == ("budget spent", 16)
    assert read_events(folder.path) == []
    assert strict((folder.path / "summary.json").read_text(encoding="utf-8")) == summary


def test_a_run_that_diverges_leaves_json_that_others_read(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    """A lost loss is null: in the alarm that it fired, in the validation and in the summary."""
    fires_at(monkeypatch, 12)
    run = breaks_at(toy(40, 12), monkeypatch, 11, 12)
    evaluate = run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda: math.nan if run.step == 12 else evaluate())
    assert drive(run, folder)["ended"] == "diverged"
    paths = list(folder.path.glob("*.json*"))
    assert {path.name for path in paths} == {"summary.json", "events.jsonl", "validation.jsonl"}
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for record in text.splitlines() if path.suffix == ".jsonl" else [text]:
            strict(record)
    fired = next(event for event in read_events(folder.path) if event["kind"] == "fired")
    assert fired["detail"] == {"index": 9.0, "loss": None}


def test_a_validation_that_is_not_a_number_is_null(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    run = toy(16)
    monkeypatch.setattr(run, "evaluate", lambda: math.inf)
    summary = drive(run, folder)
    assert (summary["ended"], summary["first_validation_loss"], summary["final_validation_loss"]) == ("budget spent", None, None)
    assert [v["loss"] for v in read_validation(folder.path)] == [None, None]
    assert strict((folder.path / "summary.json").read_text(encoding="utf-8")) == summary


# ── checkpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────


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
    every: int, checkpoint_every: int, expected: list[int], saved: list[tuple[int, str | None]], folder: RunFolder
) -> None:
    drive(toy(40, every, checkpoints={"every": checkpoint_every}), folder)
    assert saved == [*((step, None) for step in expected[:-1]), (40, "exact")]
    assert CheckpointStore(folder.path / "checkpoints").steps() == expected[-8:]
    assert all(finding.ok for finding in CheckpointStore(folder.path / "checkpoints").verify())


def test_only_the_last_are_kept(folder: RunFolder) -> None:
    drive(toy(40, checkpoints={"every": 8, "keep_last": 2}), folder)
    assert CheckpointStore(folder.path / "checkpoints").steps() == [32, 40]


def test_what_a_stop_leaves_is_exact_and_the_rest_as_configured(folder: RunFolder) -> None:
    run, asked = toy(40, checkpoints={"every": 8}), iter([False, False, True])
    drive(run, folder, stop=lambda: next(asked))
    store = CheckpointStore(folder.path / "checkpoints")
    assert [(entry.step, entry.tier) for entry in store.entries()] == [(0, "8bit"), (8, "8bit"), (16, "8bit"), (24, "exact")]
    assert store.load().tier == "exact"
    assert fingerprint(store.load(), ("ledger", "numerics", "statistics")) == run.fingerprint()


def test_a_checkpoint_has_the_telemetry_up_to_it_on_disk(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    save, there = CheckpointStore.save, []

    def looking(store: CheckpointStore, snapshot: Snapshot, **how: Any) -> None:
        there.append((snapshot.step, len(read_telemetry(folder.path)) if snapshot.step else 0))
        save(store, snapshot, **how)

    monkeypatch.setattr(CheckpointStore, "save", looking)
    drive(toy(40, checkpoints={"every": 8}), folder)
    assert there == [(step, step) for step in (0, 8, 16, 24, 32, 40)]


def test_after_a_rewind_the_new_line_is_what_there_is_to_go_back_to(folder: RunFolder) -> None:
    """Not the newest step of the line that was left."""

    def crash(run: TrainingRun, window: Sequence[Telemetry]) -> None:
        if run.lr_scale == 0.5 and run.step == 16:
            raise OSError("the power went out")

    with pytest.raises(OSError, match="power"):
        drive(toy(40, checkpoints={"every": 16}), folder, responder=Rewinder(at=24), watch=crash)
    resumed, snapshot = RunFolder.resume(folder.path)
    assert (snapshot.step, snapshot.state["lr_scale"], resumed.line) == (8, 0.5, 1)
    run = toy(40, checkpoints={"every": 16})
    run.restore(snapshot)
    drive(run, resumed)
    kept = read_telemetry(folder.path, kept_only=True)
    assert list(kept["step"]) == list(range(1, 25))
    assert set(kept["lr_scale"][8:]) == {0.5}


def test_a_rewind_that_was_lost_before_it_was_saved_is_none(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new line had begun: what is gone on with, and what is kept, is the line before."""

    def crash(folder: RunFolder, event: Event) -> None:
        raise OSError("the power went out")

    settings: dict[str, Any] = {"checkpoints": {"every": 16, "moments": "exact"}}
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "event", crash)
        with pytest.raises(OSError, match="power"):
            drive(toy(40, **settings), folder, responder=Rewinder(at=24))
    assert [(record["line"], record["step"]) for record in read_lines(folder.path / "lines.jsonl")] == [(1, 8)]
    run = toy(40, **settings)
    resumed, _ = resume(folder.path, run)
    drive(run, resumed)
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
        drive(toy(40, **settings), folder, watch=crash)
    resumed, snapshot = RunFolder.resume(folder.path)
    assert snapshot.step == 16
    run = toy(40, **settings)
    run.restore(snapshot)
    drive(run, resumed)
    straight = toy(40)
    straight.advance(40)
    assert run.fingerprint() == straight.fingerprint()
    kept = read_telemetry(folder.path, kept_only=True)
    assert list(kept["step"]) == list(range(1, 41))
    assert list(kept["line"]) == [0] * 16 + [1] * 24


def test_one_process_at_a_time_records_in_a_folder(folder: RunFolder) -> None:
    """Whoever comes second changes nothing, not a byte of the first's history."""
    drive(toy(40), folder, stop=lambda: True)
    one, snapshot = RunFolder.resume(folder.path)
    other, _ = RunFolder.resume(folder.path)
    first, second = toy(40), toy(40)
    first.restore(snapshot)
    second.restore(snapshot)
    seen = []

    def intrude(run: TrainingRun, window: Sequence[Telemetry]) -> None:
        before = (folder.path / "lines.jsonl").read_bytes()
        with pytest.raises(UserError, match=r"checkpoints is in use: .* is saving in it"):
            drive(second, other)
        seen.append((folder.path / "lines.jsonl").read_bytes() == before)

    drive(first, one, watch=intrude, stop=lambda: True)
    assert seen == [True]
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UserError, match=r"another process has gone on with the run in .*; resume it again"):
        drive(second, other)
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path.name != ".lock"}
    again, newer = RunFolder.resume(folder.path)
    second.restore(newer)
    assert drive(second, again)["ended"] == "budget spent"
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


def test_a_disk_that_is_full_ends_the_run_and_leaves_what_was_saved(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    with monkeypatch.context() as patch:
        fails(patch, after=2)
        with pytest.raises(UserError, match="No space left on device"):
            drive(toy(40, checkpoints={"every": 8}), folder)
    assert not (folder.path / "summary.json").exists()
    assert RunFolder.resume(folder.path)[1].step == 8


def test_a_disk_that_is_full_from_the_start_is_told_of_soon(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    fails(monkeypatch, after=0)
    run = toy(400, checkpoints={"every": 8})
    with pytest.raises(UserError, match="No space left on device"):
        drive(run, folder)
    assert run.step == 8


def test_a_save_that_failed_keeps_no_other_from_being_tried(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
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
            drive(run, folder, stop=stop)
    _, snapshot = RunFolder.resume(folder.path)
    assert (snapshot.step, snapshot.tier) == (24, "exact")


def test_a_run_may_go_on_without_its_checkpoints(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    fails(monkeypatch, after=2)
    with pytest.warns(UserWarning, match="No space left on device"):
        summary = drive(toy(40, checkpoints={"every": 8, "on_error": "warn"}), folder)
    assert (summary["ended"], summary["step"]) == ("budget spent", 40)
    assert CheckpointStore(folder.path / "checkpoints").steps() == [0, 8]


def test_driving_on_in_the_same_process(folder: RunFolder) -> None:
    run, asked = toy(40), iter([True])
    drive(run, folder, stop=lambda: next(asked))
    assert drive(run, folder)["step"] == 40
    assert list(read_telemetry(folder.path)["step"]) == list(range(1, 41))
    assert not (folder.path / "lines.jsonl").exists()
