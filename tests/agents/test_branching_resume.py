"""A steered run that was killed, at any moment and however, goes on to the same end, and no decision is on record twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.lengths import either
from tests.support.steered_runs import (
    HIGHER,
    LOWER,
    Promising,
    Pupil,
    alarm_at,
    toy,
)
from trainenv.agents.branching import Branching
from trainenv.checkpoints.store import CheckpointStore
from trainenv.loop import resume, train
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.records.decision_files import read_decisions
from trainenv.records.run_folder import RunFolder, read_events
from trainenv.run import TrainingRun
from trainenv.types import UserError
from trainenv.verification import record

pytestmark = pytest.mark.usefixtures("alarms")


# ── gone on with ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    """Simulated power cut, which no code may catch."""


EVENTFUL: dict[str, Any] = {
    "every": 20,
    "max_waste": 0.6,
    "verify_steps": 3,
    "rewind": 8,
    "refractory_steps": 8,
    "rewind_points": 3,
    "replayable": True,
}


def eventful() -> tuple[TrainingRun, Branching]:
    """Several decisions, a warm-up that asks, a detour, a rewind, parts that are pending and a model that learns."""
    saved, warming = {"every": 8, "moments": "exact"}, {"warmup": 24}
    run = toy(
        240,
        branching=EVENTFUL,
        kicked={60: -200.0},
        validation={"every": 30},
        checkpoints=saved,
        schedule=warming,
    )
    return run, Branching(
        planner=Promising(sequences=((LOWER, HIGHER, HIGHER), (HIGHER,), (LOWER, LOWER))),
        model=Pupil(),
    )


def came_to(run: TrainingRun, callback: Branching, path: Path) -> dict[str, Any]:
    """Everything that must be the same."""
    decisions = read_decisions(path)
    for decision in decisions:
        decision["planner"]["seconds"] = 0
    state, events = (
        callback.state_dict(),
        [(event["step"], event["kind"]) for event in read_events(path)],
    )
    found = {
        "fingerprint": run.fingerprint(),
        "state": state,
        "decisions": decisions,
        "flops": run.ledger.as_dict(),
    }
    return found | {"events": [event for event in events if event[1] != "interrupted"]}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run that nobody killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UncertaintyIndex, "update", alarm_at(61))
        run, callback = eventful()
        folder = RunFolder.create(tmp_path_factory.mktemp("straight") / "run", run.config)
        train(run, folder, callback=callback)
    return came_to(run, callback, folder.path)


def test_the_run_to_be_killed_is_eventful(straight: dict[str, Any]) -> None:
    assert len(straight["decisions"]) >= 4
    assert {decision["why"] for decision in straight["decisions"]} == {
        "warmup",
        "harm",
        "fired",
        "checkpoint",
    }
    kinds = [kind for _, kind in straight["events"]]
    assert kinds.count("rewind") >= 1
    assert kinds.count("intervention") >= 2
    assert len(straight["state"]["learned"]["taken"]) >= 3
    assert any(decision["accepted"] for decision in straight["decisions"])


PLACES: list[tuple[Any, str]] = [
    (CheckpointStore, "save"),
    (CheckpointStore, "wait"),
    (record, "write"),
    (Branching, "on_block_end"),
    (Branching, "on_evaluate"),
    (Promising, "plan"),
    (Pupil, "learn"),
    (TrainingRun, "advance"),  # of branches too
    (TrainingRun, "rewind"),
    (TrainingRun, "evaluate"),
    (TrainingRun, "apply"),
    (RunFolder, "event"),
]


def kill_at(patch: pytest.MonkeyPatch, place: int, call: int, *, before: bool) -> None:
    """The run is killed in the `call`-th call, from 0 on, before or after it has done its work."""
    owner, name = PLACES[place]
    original, calls = getattr(owner, name), []

    def counted(*one: Any, **how: Any) -> Any:
        calls.append(name)
        if len(calls) == call + 1 and before:
            raise Killed
        answer = original(*one, **how)
        if len(calls) == call + 1:
            raise Killed
        return answer

    patch.setattr(owner, name, counted)


def driven_on(path: Path) -> tuple[TrainingRun, Branching, RunFolder]:
    """Resume a run as a new process does: build the run and its callback.

    It starts anew if nothing was saved.
    """
    run, callback = eventful()
    try:
        folder, _ = resume(path, run, callback)
    except UserError:
        folder = RunFolder.create(path.with_name(f"{path.name}-anew"), run.config)
    return run, callback, folder


@settings(
    deadline=None,
    max_examples=either(short=3, long=20),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    place=st.integers(0, len(PLACES) - 1),
    call=st.integers(0, 60),
    again=st.integers(0, 30),
    before=st.booleans(),
)
@example(place=4, call=2, again=0, before=False)  # between a rewind's new line and its first save
def test_killed_at_any_moment_it_comes_to_the_same(
    place: int,
    call: int,
    again: int,
    before: bool,
    straight: dict[str, Any],
    alarms: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    alarms(61)
    path = tmp_path_factory.mktemp("killed") / "run"
    run, callback = eventful()
    folder = RunFolder.create(path, run.config)
    for kills in (
        (place, call % 20 if place != 7 else call),
        ((place + again) % len(PLACES), again),
    ):
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, *kills, before=before)
            try:
                train(run, folder, callback=callback)
                break
            except Killed:
                pass
        run, callback, folder = driven_on(path)
        path = folder.path
    else:
        train(run, folder, callback=callback)
    found = came_to(run, callback, folder.path)
    assert found["fingerprint"] == straight["fingerprint"]
    assert found["state"] == straight["state"]
    # The first validation of a run that was killed before its second checkpoint is on record, but no longer on the ledger.
    assert found["flops"] == pytest.approx(straight["flops"], abs=run.flops_per_evaluation + 1)
    numbers = [decision["number"] for decision in found["decisions"]]
    assert numbers == sorted(set(numbers))
    assert found["decisions"] == straight["decisions"]
    assert found["events"] == straight["events"]


VICTIM = """
import sys
from pathlib import Path
from trainenv.monitor.uncertainty import UncertaintyIndex
from tests.agents import test_branching_resume as resumed
from tests.support import steered_runs
from trainenv.loop import train
from trainenv.records.run_folder import RunFolder
UncertaintyIndex.update = steered_runs.alarm_at(61)
run, callback = resumed.eventful()
train(run, RunFolder.create(Path(sys.argv[1]), run.config), callback=resumed.Doomed(callback, int(sys.argv[2])))
"""


class Doomed:
    """The process is killed, as by the system, when it is to plan from a step on."""

    def __init__(self, callback: Branching, step: int) -> None:
        self._responder, planner = callback, callback.planner
        plan = planner.plan

        def planning(problem: Any, /) -> Any:
            if problem.history.telemetry[-1].step >= step:
                signal.raise_signal(signal.SIGKILL)
            return plan(problem)

        planner.plan = planning  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._responder, name)


def test_killed_for_good_by_the_system_it_comes_to_the_same(
    straight: dict[str, Any], alarms: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    victim = subprocess.run(
        [sys.executable, "-c", VICTIM, str(path), "45"], env=environment, timeout=120, check=False
    )
    assert victim.returncode == -signal.SIGKILL
    alarms(61)
    assert 1 <= len(read_decisions(path)) < len(straight["decisions"])
    run, callback = eventful()
    folder, snapshot = resume(path, run, callback)
    assert snapshot.step > 0
    train(run, folder, callback=callback)
    found = came_to(run, callback, path)
    assert (found["fingerprint"], found["state"], found["decisions"]) == tuple(
        straight[name] for name in ("fingerprint", "state", "decisions")
    )


def test_decisions_of_a_future_that_was_lost_are_off_the_record(
    alarms: Callable[..., None], tmp_path: Path
) -> None:
    """With rounded moments the run continues nearly as before, and may decide otherwise."""
    path, seen = tmp_path / "run", []
    run, callback = eventful()
    folder = RunFolder.create(path, run.config)

    def crash(run: TrainingRun, window: Any) -> None:
        if run.step >= 50:
            raise Killed

    with pytest.raises(Killed):
        train(run, folder, callback=callback, watch=crash)
    before = read_decisions(path)
    moved = path / "branches" / "47"
    (path / "branches" / str(before[-1]["step"])).rename(moved)
    run, callback = eventful()
    folder, _ = resume(path, run, callback)
    seen = [d["number"] for d in before if d["number"] > 1]
    callback._loaded["number"] = 1
    train(run, folder, callback=callback)
    numbers = [decision["number"] for decision in read_decisions(path)]
    assert seen
    assert numbers == sorted(set(numbers))
    assert not (moved / "decision.json").exists()


def test_driven_on_in_the_same_process_it_remembers(
    alarms: Callable[..., None], straight: dict[str, Any], tmp_path: Path
) -> None:
    alarms(61)
    run, callback = eventful()
    folder = RunFolder.create(tmp_path / "run", run.config)
    while train(run, folder, callback=callback, stop=lambda: True)["ended"] == "interrupted":
        pass
    found = came_to(run, callback, folder.path)
    assert (found["fingerprint"], found["state"], found["events"]) == tuple(
        straight[name] for name in ("fingerprint", "state", "events")
    )
    other, _ = eventful()
    train(other, RunFolder.create(tmp_path / "other", other.config), callback=callback)
    first = read_decisions(tmp_path / "other")[0]
    assert (first["number"], first["step"]) == (1, 20)  # it starts anew with another run


def test_a_run_that_was_left_alone_can_be_steered_from_then_on(
    alarms: Callable[..., None], tmp_path: Path
) -> None:
    run, _ = eventful()
    train(run, RunFolder.create(tmp_path / "run", run.config), stop=lambda: run.step >= 40)
    run, callback = eventful()
    folder, _ = resume(tmp_path / "run", run, callback)
    train(run, folder, callback=callback)
    first = next(
        decision for decision in read_decisions(folder.path) if decision["why"] == "checkpoint"
    )
    assert first["step"] > 60
    planner: Any = callback.planner
    assert [t.step for t in planner.problems[0].history.telemetry] == list(
        range(1, first["step"] + 1)
    )
