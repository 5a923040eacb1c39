"""Driving a run: validation at its boundaries, what responders are asked and record, and lines of history."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import trainenv
from tests.support.alarms import fires_at
from tests.support.driven_runs import Rewinder, newest, toy
from tests.support.strict_json import strict
from trainenv import TrainingConfig, TrainingRun, agents
from trainenv.checkpoints.store import CheckpointStore
from trainenv.loop import Callback, CallbackResult, resume, train
from trainenv.records.run_folder import RunFolder, read_events, read_validation
from trainenv.records.telemetry_log import read_telemetry
from trainenv.tools.json_lines import read_lines
from trainenv.types import Event, Run, Telemetry, UserError

# ── blocks and validation ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (40, 0, [0, 40]),
        (40, 10, [0, 10, 20, 30, 40]),
        (35, 10, [0, 10, 20, 30, 35]),
        (35, 100, [0, 35]),
        (1, 1, [0, 1]),
    ],
)
def test_validation_at_its_steps_at_the_start_and_at_the_end(
    steps: int, every: int, expected: list[int], folder: RunFolder
) -> None:
    run = toy(steps, every)
    summary = train(run, folder)
    found = read_validation(folder.path)
    assert [v["step"] for v in found] == expected
    assert {v["line"] for v in found} == {0}
    assert summary["first_validation_loss"] == found[0]["loss"] == pytest.approx(math.log(8))
    assert summary["final_validation_loss"] == found[-1]["loss"] == run.evaluate()


def test_blocks_end_at_boundaries(folder: RunFolder) -> None:
    callback, watched = Rewinder(), []
    train(
        toy(27, 12),
        folder,
        callback=callback,
        watch=lambda run, window: watched.append([t.step for t in window]),
    )
    expected = [(1, 8), (9, 12), (13, 20), (21, 24), (25, 27)]
    assert callback.windows == watched == [list(range(first, last + 1)) for first, last in expected]


def test_driving_changes_nothing_of_the_run(folder: RunFolder) -> None:
    driven, straight = toy(40, 12, checkpoints={"every": 8}), toy(40, 12)
    train(driven, folder)
    straight.advance(40)
    assert driven.fingerprint() == straight.fingerprint()


def test_summary_of_a_run_that_spent_its_budget(folder: RunFolder) -> None:
    run = toy(40)
    summary = train(run, folder)
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
    train(run, folder)
    assert [v["step"] for v in read_validation(folder.path)] == [20, 24, 36, 40]
    assert list(read_telemetry(folder.path)["step"]) == list(range(21, 41))


def test_a_run_with_nothing_left_to_do(folder: RunFolder) -> None:
    run = toy(8)
    last = run.advance(8)[-1]
    summary = train(run, folder)
    assert (summary["ended"], summary["step"], summary["final_learning_rate"]) == (
        "budget spent",
        8,
        last.lr,
    )
    assert summary["first_validation_loss"] == summary["final_validation_loss"] == run.evaluate()
    assert len(read_validation(folder.path)) == 1
    assert (folder.path / "summary.json").is_file()


# ── events and lines ────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_alarm_is_an_event(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> None:
    fires_at(monkeypatch, 3, 5, 24)
    assert train(toy(40), folder)["fired"] == 3
    events = read_events(folder.path)
    assert [(e["step"], e["kind"], e["line"]) for e in events] == [
        (3, "fired", 0),
        (5, "fired", 0),
        (24, "fired", 0),
    ]
    losses = read_telemetry(folder.path).set_index("step")["loss"]
    for event in events:
        found = {"index": 9.0, "loss": losses[event["step"]]}
        assert event["detail"].items() >= found.items()
        assert event["detail"]["layer"] in event["detail"]["layers"]
    assert list(read_telemetry(folder.path).query("fired")["step"]) == [3, 5, 24]


def test_a_rewind_starts_a_new_line(folder: RunFolder) -> None:
    run = toy(40)
    summary = train(run, folder, callback=Rewinder(at=24))
    assert (summary["rewinds"], summary["ended"], summary["step"]) == (1, "budget spent", 24)
    assert read_lines(folder.path / "lines.jsonl") == [{"line": 1, "step": 8, "rewinds": 1}]
    assert [(e["line"], e["step"], e["kind"]) for e in read_events(folder.path)] == [
        (1, 24, "rewind"),
        (1, 8, "intervention"),
    ]
    everything, kept = read_telemetry(folder.path), read_telemetry(folder.path, kept_only=True)
    assert list(everything["step"]) == [*range(1, 25), *range(9, 25)]
    assert list(everything["line"]) == [0] * 24 + [1] * 16
    assert list(kept["step"]) == list(range(1, 25))
    assert list(kept["line"]) == [0] * 8 + [1] * 16
    assert set(kept["lr_scale"][:8]) == {1.0}
    assert set(kept["lr_scale"][8:]) == {0.5}
    assert run.ledger["rewound"] == pytest.approx(run.ledger["main"] * 16 / 24)


def test_a_validation_step_that_comes_again_after_a_rewind_is_validated_again(
    folder: RunFolder,
) -> None:
    """It is of another line, and so another loss."""
    train(toy(40, 16), folder, callback=Rewinder(at=24))
    found = read_validation(folder.path)
    assert [(v["line"], v["step"]) for v in found] == [(0, 0), (0, 16), (1, 16), (1, 24)]
    assert found[1]["loss"] != found[2]["loss"]


def test_any_event_of_a_responder_is_recorded(folder: RunFolder) -> None:
    class Noting(Callback):
        def on_block_end(self, run: TrainingRun, window: Sequence[Telemetry], /) -> CallbackResult:
            return CallbackResult(events=[Event(run.step, "intervention", {"n": len(window)})])

    assert train(toy(20), folder, callback=Noting())["rewinds"] == 0
    assert [(e["step"], e["detail"]["n"]) for e in read_events(folder.path)] == [
        (8, 8),
        (16, 8),
        (20, 4),
    ]
    assert not (folder.path / "lines.jsonl").exists()


def test_a_responder_says_when_it_is_asked_and_what_is_saved(folder: RunFolder) -> None:
    seen: list[int] = []

    class Early(Callback):
        def next_block(self, run: TrainingRun, /) -> int:
            return (3 - run.step) % 5 or 5

        def on_block_end(self, run: TrainingRun, window: Sequence[Telemetry], /) -> CallbackResult:
            seen.append(run.step)
            return CallbackResult(save=run.step in {13, 16})

    train(toy(20, checkpoints={"every": 16}), folder, callback=Early())
    assert seen == [3, 8, 13, 16, 18, 20]  # blocks of eight, checkpoints and the end go before it
    assert CheckpointStore(folder.path / "checkpoints").steps() == [0, 13, 16, 20]


@dataclass
class Ahead(Callback):
    """Trains five steps of its own at step 8, which the run keeps; remembers all that it was told."""

    told: list[list[float]] = field(default_factory=list)
    begun: int = 0

    def on_train_begin(
        self, run: TrainingRun, folder: RunFolder, store: CheckpointStore, /
    ) -> None:
        self.begun += 1

    def on_block_end(self, run: TrainingRun, window: Sequence[Telemetry], /) -> CallbackResult:
        return CallbackResult(kept=run.advance(5)) if run.step == 8 else CallbackResult()

    def on_evaluate(self, step: int, loss: float, /) -> None:
        self.told.append([step, loss])

    def state_dict(self) -> dict[str, Any]:
        return {"told": self.told}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.told = state["told"]


def test_steps_that_a_responder_trained_are_the_runs_own(folder: RunFolder) -> None:
    """They are recorded, counted, and a validation that they pass over is made up for where they end."""
    run, callback = toy(40, 12), Ahead()
    train(run, folder, callback=callback)
    alone = toy(40, 12)
    alone.advance(40)
    assert run.fingerprint() == alone.fingerprint()
    assert list(read_telemetry(folder.path, kept_only=True)["step"]) == list(range(1, 41))
    assert [v["step"] for v in read_validation(folder.path)] == [0, 13, 24, 36, 40]
    assert callback.begun == 1
    assert callback.told == [[v["step"], v["loss"]] for v in read_validation(folder.path)[1:]]


def test_what_a_responder_remembers_comes_back_with_the_run(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", TrainingConfig(steps=1))
    train(toy(40, 12), folder, callback=Ahead(), stop=lambda: len(read_validation(folder.path)) > 2)
    run, callback = toy(40, 12), Ahead()
    folder, snapshot = resume(tmp_path / "run", run, callback)
    assert callback.told == [[v["step"], v["loss"]] for v in read_validation(folder.path)[1:]]
    assert run.step == snapshot.step == 24
    train(run, folder, callback=callback)
    assert [step for step, _ in callback.told] == [13, 24, 36, 40]


# ── callbacks that are none, and little ones ────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (5, "found int without on_train_begin"),
        (Callback, "found Callback itself; call it"),
        (trainenv.branching, "found branching itself; call it"),
        (agents.ClipOnly("zclip"), "found ClipOnly without"),
    ],
    ids=["number", "class", "function", "agent"],
)
def test_a_wrong_callback_is_refused_before_anything_is_written(
    callback: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        train(toy(20), tmp_path / "run", callback=callback)
    assert not (tmp_path / "run").exists()


def test_a_wrong_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run must be a run, found 'tiny'"):
        train("tiny", tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_callback_may_override_one_method_alone(tmp_path: Path) -> None:
    class Losses(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_evaluate(self, step: int, loss: float, /) -> None:
            self.seen.append(loss)

    callback = Losses()
    assert train(toy(20), tmp_path / "run", callback=callback)["ended"] == "budget spent"
    assert callback.seen


def test_a_block_has_a_step_at_least(tmp_path: Path) -> None:
    class Never(Callback):
        def next_block(self, run: Run, /) -> int:
            return 0

    with pytest.raises(UserError, match="return value of next_block must be 1 or more, found 0"):
        train(toy(20), tmp_path / "run", callback=Never())
