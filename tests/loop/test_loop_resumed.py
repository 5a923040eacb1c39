"""Parts that a run is resumed with in Python: who steered it, and what it was trained with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.driven_runs import toy
from trainenv import TrainingConfig, TrainingRun
from trainenv.agents import AgentCallback, RollbackRule
from trainenv.loop import Callback, CallbackResult, resume, train
from trainenv.records.made_of import MadeOf
from trainenv.records.run_folder import CALLBACK_STATE, RunFolder
from trainenv.types import Telemetry, UserError


@dataclass(frozen=True, kw_only=True)
class Counting(Callback):
    """Counts what it was called for, in units of `unit`."""

    unit: int = 1
    counts: list[int] = field(default_factory=lambda: [0])

    def on_block_end(self, run: TrainingRun, window: Sequence[Telemetry], /) -> CallbackResult:
        self.counts[0] += self.unit
        return CallbackResult()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.counts[0]}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.counts[0] = state.get("count", 0)


def stopped(path: Path, callback: Callback | None) -> None:
    train(
        toy(40),
        RunFolder.create(path, TrainingConfig(steps=1)),
        callback=callback,
        stop=lambda: True,
    )


def files(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def refused(path: Path, words: str, run: TrainingRun, callback: Callback | None) -> None:
    before, start = files(path), run.fingerprint()
    with pytest.raises(UserError, match=words):
        resume(path, run, callback)
    assert (files(path), run.fingerprint()) == (before, start)


@pytest.mark.parametrize("recorded", [True, False])
def test_what_a_responder_remembers_is_not_dropped_in_silence(
    recorded: bool, tmp_path: Path
) -> None:
    stopped(tmp_path / "run", Counting())
    if not recorded:
        (tmp_path / "run" / "checkpoints" / "made_of.json").unlink()
    refused(tmp_path / "run", "is steered .*, found no callback", toy(40), None)
    run = toy(40)
    _, snapshot = resume(tmp_path / "run", run, accept_changes=True)
    assert (run.step, CALLBACK_STATE in snapshot.state) == (8, True)


def test_a_responder_of_another_kind_is_given_nothing(tmp_path: Path) -> None:
    stopped(tmp_path / "run", RollbackRule())
    acting = AgentCallback(agent=Refusing())
    refused(
        tmp_path / "run",
        r"steered by trainenv\.agents\.RollbackRule, found trainenv\.agents\.AgentCallback",
        toy(40),
        acting,
    )
    resume(tmp_path / "run", toy(40), acting, accept_changes=True)


class Refusing:
    """An agent that is never asked."""

    def act(self, *given: Any) -> Any:
        raise AssertionError


def test_other_settings_of_the_same_responder_are_a_change(tmp_path: Path) -> None:
    stopped(tmp_path / "run", Counting())
    refused(tmp_path / "run", "the callback's unit was 1, is 2", toy(40), Counting(unit=2))
    again = Counting(unit=2)
    folder, _ = resume(tmp_path / "run", toy(40), again, accept_changes=True)
    assert again.counts == [1]
    assert folder.changes == ("the callback's unit was 1, is 2",)


def test_who_begins_to_steer_later_is_welcome(tmp_path: Path) -> None:
    stopped(tmp_path / "run", None)
    run, callback = toy(40), Counting()
    folder, _ = resume(tmp_path / "run", run, callback)
    assert folder.changes == ()
    train(run, folder, callback=callback)
    made = MadeOf.read(folder.path)
    assert made is not None
    assert made.callback == {"class": "test_loop_resumed.Counting", "unit": 1}


def test_a_run_that_was_built_otherwise_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path / "run", None)
    refused(tmp_path / "run", "steps was 40, is 80", toy(80), None)
    resume(tmp_path / "run", toy(80), accept_changes=True)


def test_what_only_another_version_knows_is_no_change(tmp_path: Path) -> None:
    stopped(tmp_path / "run", None)
    record = tmp_path / "run" / "checkpoints" / "made_of.json"
    made = json.loads(record.read_text(encoding="utf-8"))
    del made["config"]["clip"]
    made["config"]["gone"] = 3
    record.write_text(json.dumps(made), encoding="utf-8")
    folder, _ = resume(tmp_path / "run", toy(40))
    assert folder.changes == ()
