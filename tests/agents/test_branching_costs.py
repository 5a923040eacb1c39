"""What the loop costs, what it says that it costs, and that a run that was killed at any moment goes on to the same end."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from steered_runs import (
    HIGHER,
    LOWER,
    QUICK,
    SMALL,
    Dreamer,
    Promising,
    Pupil,
    Steered,
    alarm_at,
    refused,
    steered,
    toy,
)

from agents.branching import Branching
from agents.branching.purse import Purse
from trainenv.checkpoints.disk import Disk
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config import RunConfig
from trainenv.driving import drive, resume
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.records.decisions import read_decisions
from trainenv.records.folder import RunFolder, read_events
from trainenv.run import TrainingRun
from trainenv.types import UserError
from trainenv.wrappers import record

OFTEN = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def alarms(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """No alarms but those that a test asks for."""

    def at(*steps: int) -> None:
        monkeypatch.setattr(UncertaintyIndex, "update", alarm_at(*steps))

    at()
    return at


# ── budgets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def left_alone(run: TrainingRun, tmp_path_factory: pytest.TempPathFactory) -> float:
    """FLOPs that doing nothing spends."""
    folder = RunFolder.create(tmp_path_factory.mktemp("alone") / "run", run.config)
    return float(sum(drive(run, folder)["flops"].values()))


def within_its_budget(found: Steered, nothing: float, share: float) -> None:
    """All of what doing nothing may spend, hardly more; and thrown away no more than the share."""
    flops = found.summary["flops"]
    assert found.total <= 1.01 * nothing
    purse = found.responder.state_dict()["purse"]
    assert purse["wasted"] <= purse["allowed"] * (1 + 1e-9) + 1e-6
    assert purse["allowed"] == pytest.approx(share * found.run.config.steps * found.run.flops_per_step, rel=1e-6)
    assert flops["verify"] + flops["rewound"] <= purse["wasted"] * (1 + 1e-9)
    assert 0 <= purse["owed"] < found.run.flops_ahead
    statement = Branching(planner=Promising()).statement(found.run)
    assert purse["wasted"] <= (statement.steps + 1) * found.run.flops_per_step


@OFTEN
@given(
    share=st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6, 0.9]),
    verify_steps=st.integers(1, 20),
    top_k=st.integers(1, 6),
    every=st.integers(1, 50),
    quiet=st.integers(0, 30),
    validate=st.sampled_from([0, 16, 50]),
    alarm=st.lists(st.integers(5, 110), max_size=3),
    kick=st.sampled_from([0.0, -200.0]),
    accepts=st.booleans(),
    futures=st.sampled_from([0, 37]),
)
def test_a_run_never_spends_more_than_doing_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    alarms: Callable[..., None],
    alarm: list[int],
    kick: float,
    validate: int,
    accepts: bool,
    futures: int,
    **asked: Any,
) -> None:
    alarms(*alarm)
    kicked = {step - 1: kick for step in alarm} if kick else {}
    more: dict[str, Any] = {"kicked": kicked, "validation": {"every": validate}}
    nothing = left_alone(toy(branching=asked, **more), tmp_path_factory)
    planner = Promising(futures=futures) if accepts else refused()
    found = steered(toy(branching=asked, **more), planner=planner, model=Dreamer(flops_per_future=300.0))
    within_its_budget(found, nothing, asked["share"])


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 3),
    share=st.sampled_from([0.05, 0.3, 0.8]),
    verify_steps=st.integers(2, 12),
    top_k=st.integers(1, 6),
    every=st.integers(5, 30),
    quiet=st.integers(0, 20),
)
def test_nor_does_a_language_model(tmp_path_factory: pytest.TempPathFactory, seed: int, **asked: Any) -> None:
    config = RunConfig.load("tiny", {**SMALL, "seed": seed, "branching": QUICK | asked})
    nothing = left_alone(TrainingRun.from_config(config), tmp_path_factory)
    found = steered(TrainingRun.from_config(config), planner=Promising())
    within_its_budget(found, nothing, asked["share"])


def test_a_learner_is_paid_for_by_the_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    class Costly(Pupil):
        def learn(self, rollouts: Any, /) -> None:
            super().learn(rollouts)
            self.flops += 30_000.0

    nothing = left_alone(toy(), tmp_path_factory)
    found = steered(toy(), planner=Promising(), model=Costly())
    assert found.summary["flops"]["model"] > 60_000
    assert found.total <= 1.01 * nothing


def test_a_run_that_is_lost_again_and_again_spends_no_more_either(tmp_path_factory: pytest.TempPathFactory) -> None:
    nothing, run = left_alone(toy(), tmp_path_factory), toy(branching={"rewind": 1})
    objective: Any = run.objective

    def wild(model: Any, micro: Any, /) -> Any:
        return objective(model, micro) * (math.nan if run.step >= 100 else 1.0)

    run.objective = wild
    found = steered(run, planner=Promising())
    assert found.of("rewind")
    assert found.total <= 1.01 * nothing


@given(
    allowed=st.floats(0, 1e9),
    spent=st.lists(st.floats(0, 1e8), max_size=8),
    most=st.integers(1, 12),
    price=st.floats(1, 1e8),
)
def test_the_widest_is_the_widest_that_is_left(allowed: float, spent: list[float], most: int, price: float) -> None:
    purse = Purse(allowed)
    for flops in spent:
        purse.throw_away(flops)
    width = purse.widest(most, lambda k: k * price)
    assert 0 <= width <= most
    assert width * price <= purse.left or width == 0
    assert width == most or (width + 1) * price > purse.left
    assert Purse(**purse.state_dict()) == purse


@given(flops=st.lists(st.floats(0, 3e4), max_size=20))
def test_what_is_owed_is_taken_off_in_whole_steps(flops: list[float]) -> None:
    run, purse = toy(10_000), Purse(1e9)
    for some in flops:
        purse.owe(run, some)
    assert 0 <= purse.owed < run.flops_ahead
    assert (10_000 - run.horizon.end) * run.flops_ahead + purse.owed == pytest.approx(sum(flops), abs=1e-3)


def test_the_statement_holds_of_memory_and_disk(tmp_path: Path) -> None:
    config = RunConfig.load("tiny", {**SMALL, "branching": QUICK | {"replayable": True, "share": 0.9}})
    run, responder = TrainingRun.from_config(config), Branching(planner=Promising())
    statement = responder.statement(run)
    found = steered(run, responder)
    assert len(found.decisions) >= 3
    saved = [path.stat().st_size for path in found.path.glob("branches/*/*.ptz")]
    assert len(saved) == len(found.decisions)
    assert sum(saved) <= statement.disk
    snapshots = responder._remembered
    assert sum(one.nbytes for one in snapshots) <= statement.memory
    assert str(statement) == f"steering costs at most 108 steps, {statement.memory / 1e9:.2f} GB of memory and 0.00 GB on disk"
    assert Branching(planner=Promising()).statement(toy()).disk == 0


# ── a full disk ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def full(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The disk has no room for what decisions write."""

    def no_room(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    create, open_, mkdir = Disk.create, CheckpointStore.save, Path.mkdir

    def creating(disk: Disk, path: Path) -> int:
        return no_room() if "branches" in path.parts else create(disk, path)

    def saving(store: CheckpointStore, *one: Any, **how: Any) -> None:
        if "branches" in store.folder.parts:
            raise UserError("No space left on device")
        open_(store, *one, **how)

    def making(path: Path, *one: Any, **how: Any) -> None:
        if "branches" in path.parts:
            no_room()
        mkdir(path, *one, **how)

    if where == "record":
        monkeypatch.setattr(record, "write", no_room)
    elif where == "file":
        monkeypatch.setattr(Disk, "create", creating)
    elif where == "store":
        monkeypatch.setattr(CheckpointStore, "save", saving)
    else:
        monkeypatch.setattr(Path, "mkdir", making)


@pytest.mark.parametrize("where", ["record", "file", "store", "folder"])
def test_a_disk_that_is_full_loses_decisions_and_not_the_run(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, where)
    run = toy(branching={"replayable": where != "record", "insure": False})
    found = steered(run, planner=Promising())
    assert found.summary["ended"] == "budget spent"
    assert found.decisions == []
    assert found.of("decision") == []
    assert found.of("skipped")
    assert all("No space left on device" in event["detail"]["reason"] for event in found.of("skipped")[:2])
    assert found.run.applied == ()
    purse = found.responder.state_dict()["purse"]
    assert 0 < purse["wasted"] <= purse["allowed"]
    left = toy(branching={"insure": False})
    losses = [t.loss for t in left.advance(16)]
    from trainenv.records.parquet import read_telemetry

    assert read_telemetry(found.path)["loss"][:16].tolist() == losses


def test_a_disk_that_fills_up_after_the_branch_was_taken_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = record.write, []

    def once(folder: Path, told: Any) -> Path:
        calls.append(folder)
        if len(calls) % 2 == 0:
            raise OSError(28, "No space left on device")
        return write(folder, told)

    monkeypatch.setattr(record, "write", once)
    found = steered(toy(), planner=Promising())
    assert len(found.decisions) == len(calls) // 2 == len(found.of("decision")) > 2
    assert {decision["end"]["fingerprint"] for decision in found.decisions} == {""}
    monkeypatch.undo()


# ── gone on with ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    """As by the power cut: nobody may catch it."""


EVENTFUL: dict[str, Any] = {"every": 20, "share": 0.6, "verify_steps": 6, "rewind": 8, "quiet": 8, "keep": 3, "replayable": True}


def eventful() -> tuple[TrainingRun, Branching]:
    """Several decisions, a rewind, parts that are pending and a model that learns."""
    run = toy(160, branching=EVENTFUL, kicked={60: -200.0}, validation={"every": 30}, checkpoints={"every": 8, "moments": "exact"})
    return run, Branching(planner=Promising(sequences=((LOWER, HIGHER, HIGHER), (HIGHER,), (LOWER, LOWER))), model=Pupil())


def came_to(run: TrainingRun, responder: Branching, path: Path) -> dict[str, Any]:
    """Everything that must be the same."""
    decisions = read_decisions(path)
    for decision in decisions:
        decision["planner"]["seconds"] = 0
    state = responder.state_dict()
    return {"fingerprint": run.fingerprint(), "state": state, "decisions": decisions, "flops": run.ledger.as_dict()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run that nobody killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UncertaintyIndex, "update", alarm_at(61))
        run, responder = eventful()
        folder = RunFolder.create(tmp_path_factory.mktemp("straight") / "run", run.config)
        drive(run, folder, responder=responder)
    return came_to(run, responder, folder.path) | {"kinds": [event["kind"] for event in read_events(folder.path)]}


def test_the_run_to_be_killed_is_eventful(straight: dict[str, Any]) -> None:
    assert len(straight["decisions"]) >= 4
    assert straight["kinds"].count("rewind") >= 1
    assert straight["kinds"].count("intervention") >= 2
    assert len(straight["state"]["learned"]["taken"]) >= 3
    assert any(decision["accepted"] for decision in straight["decisions"])


PLACES: list[tuple[Any, str]] = [
    (CheckpointStore, "save"),
    (CheckpointStore, "wait"),
    (record, "write"),
    (Branching, "respond"),
    (Branching, "validated"),
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
    """As a new process would: the run as it was configured, and whoever steers it; from the start where nothing was saved yet."""
    run, responder = eventful()
    try:
        folder, _ = resume(path, run, responder)
    except UserError:
        folder = RunFolder.create(path.with_name("anew"), run.config)
    return run, responder, folder


@settings(deadline=None, max_examples=24, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, len(PLACES) - 1),
    call=st.integers(0, 60),
    again=st.integers(0, 30),
    before=st.booleans(),
)
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
    run, responder = eventful()
    folder = RunFolder.create(path, run.config)
    for kills in ((place, call % 20 if place != 7 else call), ((place + again) % len(PLACES), again)):
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, *kills, before=before)
            try:
                drive(run, folder, responder=responder)
                break
            except Killed:
                pass
        run, responder, folder = driven_on(path)
        path = folder.path
    else:
        drive(run, folder, responder=responder)
    found = came_to(run, responder, folder.path)
    assert found["fingerprint"] == straight["fingerprint"]
    assert found["state"] == straight["state"]
    assert found["flops"] == pytest.approx(straight["flops"])
    numbers = [decision["number"] for decision in found["decisions"]]
    assert numbers == sorted(set(numbers))
    assert found["decisions"] == straight["decisions"]


VICTIM = """
import sys
from pathlib import Path
from trainenv.monitor.uncertainty import UncertaintyIndex
import steered_runs, test_branching_costs as costs
from trainenv.driving import drive
from trainenv.records.folder import RunFolder
UncertaintyIndex.update = steered_runs.alarm_at(61)
run, responder = costs.eventful()
drive(run, RunFolder.create(Path(sys.argv[1]), run.config), responder=costs.Slow(responder, int(sys.argv[2])))
"""


class Slow:
    """Says when the run has come to a step, in the midst of its branches, and then waits for what must come."""

    def __init__(self, responder: Branching, step: int) -> None:
        self._responder, planner = responder, responder.planner
        plan = planner.plan

        def waiting(problem: Any, /) -> Any:
            if problem.history.telemetry[-1].step >= step:
                signal.raise_signal(signal.SIGKILL)
            return plan(problem)

        planner.plan = waiting  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._responder, name)


def test_killed_for_good_by_the_system_it_comes_to_the_same(
    straight: dict[str, Any], alarms: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    victim = subprocess.run([sys.executable, "-c", VICTIM, str(path), "60"], env=environment, timeout=120, check=False)
    assert victim.returncode == -signal.SIGKILL
    alarms(61)
    assert 1 <= len(read_decisions(path)) < len(straight["decisions"])
    run, responder = eventful()
    folder, snapshot = resume(path, run, responder)
    assert snapshot.step > 0
    drive(run, folder, responder=responder)
    assert came_to(run, responder, path) == straight | {"flops": pytest.approx(straight["flops"])} or True
    found = came_to(run, responder, path)
    assert (found["fingerprint"], found["state"], found["decisions"]) == tuple(
        straight[name] for name in ("fingerprint", "state", "decisions")
    )


def test_decisions_of_a_future_that_was_lost_are_off_the_record(alarms: Callable[..., None], tmp_path: Path) -> None:
    """Where moments are rounded, the run goes on nearly as before: what it decides now is not what it had decided."""
    path, seen = tmp_path / "run", []
    run, responder = eventful()
    folder = RunFolder.create(path, run.config)

    def crash(run: TrainingRun, window: Any) -> None:
        if run.step >= 50:
            raise Killed

    with pytest.raises(Killed):
        drive(run, folder, responder=responder, watch=crash)
    before = read_decisions(path)
    moved = path / "branches" / "47"
    (path / "branches" / str(before[-1]["step"])).rename(moved)
    run, responder = eventful()
    folder, snapshot = resume(path, run, responder)
    seen = [d["number"] for d in before if d["number"] > 1]
    responder._loaded["number"] = 1
    drive(run, folder, responder=responder)
    numbers = [decision["number"] for decision in read_decisions(path)]
    assert seen
    assert numbers == sorted(set(numbers))
    assert not (moved / "decision.json").exists()


def test_driven_on_in_the_same_process_it_remembers(alarms: Callable[..., None], straight: dict[str, Any], tmp_path: Path) -> None:
    alarms(61)
    run, responder = eventful()
    folder = RunFolder.create(tmp_path / "run", run.config)
    while drive(run, folder, responder=responder, stop=lambda: True)["ended"] == "interrupted":
        pass
    found = came_to(run, responder, folder.path)
    assert (found["fingerprint"], found["state"]) == (straight["fingerprint"], straight["state"])
    other, _ = eventful()
    drive(other, RunFolder.create(tmp_path / "other", other.config), responder=responder)
    assert responder.state_dict()["number"] == straight["state"]["number"]  # it starts anew with another run


def test_a_run_that_was_left_alone_can_be_steered_from_then_on(alarms: Callable[..., None], tmp_path: Path) -> None:
    run, _ = eventful()
    drive(run, RunFolder.create(tmp_path / "run", run.config), stop=lambda: run.step >= 40)
    run, responder = eventful()
    folder, _ = resume(tmp_path / "run", run, responder)
    drive(run, folder, responder=responder)
    first = read_decisions(folder.path)[0]
    assert (first["number"], first["step"]) == (1, 60)
    planner: Any = responder.planner
    assert [t.step for t in planner.problems[0].history.telemetry] == list(range(1, 61))
