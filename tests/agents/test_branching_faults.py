"""Planners, models, rules and disks that fail: the run goes on, and it is told what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.steered_runs import (
    NOTHING,
    Dreamer,
    Promising,
    Pupil,
    forecast,
    steered,
    toy,
)
from trainenv import planners
from trainenv.agents.branching import Branching, PlanningOptions
from trainenv.checkpoints.store import CheckpointStore
from trainenv.composition.default_loop import allow_by_risk
from trainenv.records.decision_files import read_decisions
from trainenv.records.telemetry_log import read_telemetry
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.types import (
    Candidate,
    Intervention,
    Plan,
    PlanningProblem,
    RunHistory,
    Telemetry,
    UserError,
)
from trainenv.verification import record

pytestmark = pytest.mark.usefixtures("alarms")


# ── what it survives ──────────────────────────────────────────────────────────────────────────────────────────────────


def raising(error: Exception) -> Callable[..., Any]:
    def plan(problem: PlanningProblem) -> Any:
        raise error

    return plan


GARBAGE: dict[str, tuple[Callable[..., Any], str]] = {
    "raises": (raising(ZeroDivisionError("by zero")), "ZeroDivisionError: by zero"),
    "out of memory": (raising(MemoryError("none left")), "MemoryError: none left"),
    "a user error": (raising(UserError("needs a model")), "needs a model"),
    "None": (lambda problem: None, "a planner must return a Plan, found None"),
    "text": (lambda problem: "x" * 500, "a planner must return a Plan, found 'xxx"),
    "words for interventions": (
        lambda problem: Plan(
            planner="p",
            candidates=(
                Candidate(interventions=("up",), score=-1.0),
                Candidate(interventions=(NOTHING,), score=0.0),
            ),  # type: ignore[arg-type]
        ),
        "AttributeError",
    ),
    "faults": (
        lambda problem: Plan(
            planner="p",
            candidates=(Candidate(interventions=(NOTHING,), score=0.0),),
            faults=("it fell", "over"),
        ),
        "it fell; over",
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_planner_that_fails_is_told_of_and_the_run_goes_on(name: str) -> None:
    plan, said = GARBAGE[name]

    class Broken:
        def __init__(self) -> None:
            self.plan = plan

    found = steered(toy(branching={"default_clip": False}), Branching(planner=Broken()))
    assert found.summary["ended"] == "budget spent"
    assert found.decisions == []
    assert len(found.of("skipped")) > 3
    assert all(event["detail"]["reason"].startswith(said) for event in found.of("skipped"))


def test_a_draft_of_the_impossible_fails_and_nothing_is_done() -> None:
    found = steered(toy(), planner=Promising(sequences=[(Intervention(lr_scale=1e9),)]))
    assert {branch["fate"] for decision in found.decisions for branch in decision["branches"]} == {
        "control",
        "failed",
    }
    assert found.run.lr_scale == 1.0


def test_a_model_that_raises_is_told_of_and_the_run_goes_on() -> None:
    class Broken(Dreamer):
        def forecast(self, history: RunHistory, interventions: Sequence[Any], /) -> Any:
            raise RuntimeError("NaN in the weights")

    asked = steered(toy(), planner=planners.make("grid"), model=Broken())
    assert asked.summary["ended"] == "budget spent"
    assert all("NaN in the weights" in event["detail"]["reason"] for event in asked.of("skipped"))
    allowing = steered(
        toy(), planner=Promising(), model=Broken(), planning=PlanningOptions(allow=allow_by_risk)
    )
    assert {event["detail"]["reason"] for event in allowing.of("skipped")} == {
        "RuntimeError: NaN in the weights"
    }
    assert asked.of("skipped")
    assert allowing.of("skipped")


def test_a_learner_that_fails_to_learn_is_told_of_beside_the_decision() -> None:
    class Forgetful(Pupil):
        def learn(self, rollouts: Sequence[Any], /) -> None:
            raise RuntimeError("no room")

    found = steered(toy(), planner=Promising(), model=Forgetful())
    assert found.of("decision")
    assert {tuple(event["detail"]["faults"]) for event in found.of("decision")} == {
        ("the model did not learn: RuntimeError: no room",)
    }
    assert all(
        "faults" not in event["detail"]
        for event in steered(toy(), planner=Promising(), model=Pupil()).of("decision")
    )


def test_a_learner_whose_state_cannot_be_saved_is_told_of_and_the_run_goes_on() -> None:
    class Secretive(Pupil):
        def state_dict(self) -> dict[str, Any]:
            raise RuntimeError("no words for it")

    found = steered(toy(), planner=Promising(), model=Secretive())
    assert found.summary["ended"] == "budget spent"
    reason = "what the model has learned can't be saved: RuntimeError: no words for it"
    assert [fault["reason"] for fault in found.summary["faults"]] == [reason]


def test_a_rule_that_raises_loses_the_decision_and_not_the_run() -> None:
    class Judge:
        measure = "horizon"

        def objection(self, branch: Any, control: Any, /) -> str:
            raise LookupError("no precedent")

        def rank(self, branch: Any, /) -> float:
            return 0.0

    from trainenv.verification.verify import Verification

    verification = Verification(rule=Judge(), top_k=2, verify_steps=4)  # type: ignore[arg-type]
    found = steered(
        toy(branching={"default_clip": False, "max_waste": 0.2}),
        planner=Promising(),
        verification=verification,
    )
    assert {event["detail"]["reason"].split(":")[0] for event in found.of("skipped")} == {
        "LookupError",
        "no budget is left",
    }
    assert read_decisions(found.path) == []
    assert found.callback.state_dict()["purse"]["wasted"] > 0
    assert (
        found.callback.state_dict()["purse"]["wasted"]
        <= found.callback.state_dict()["purse"]["allowed"]
    )


def test_what_is_handed_to_the_model_is_what_was_measured() -> None:
    pupil, told = Pupil(), []
    learn = pupil.learn
    pupil.learn = lambda rollouts, /: (told.extend(rollouts), learn(rollouts))[1]  # type: ignore[method-assign, func-returns-value]
    found = steered(
        toy(branching={"horizon": 32, "verify_steps": 4}), planner=Promising(), model=pupil
    )
    measured = [
        branch["delta"] for decision in found.decisions for branch in decision["branches"][1:]
    ]
    assert [rollout.looks for rollout in told] == [
        (delta,) for delta in measured if delta is not None
    ]
    assert {rollout.run for rollout in told} == {"toy-0"}
    assert all(isinstance(t, Telemetry) for t in told[0].history.telemetry)
    assert found.summary["flops"]["model"] == 1000.0 * len(told)
    assert forecast().horizon.low < 0


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
def test_a_disk_that_is_full_loses_decisions_and_not_the_run(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, where)
    run = toy(branching={"replayable": where != "record", "default_clip": False})
    found = steered(run, planner=Promising())
    assert found.summary["ended"] == "budget spent"
    assert found.decisions == []
    assert found.of("decision") == []
    assert found.of("skipped")
    assert all(
        "No space left on device" in event["detail"]["reason"] for event in found.of("skipped")[:2]
    )
    assert found.run.applied == ()
    purse = found.callback.state_dict()["purse"]
    assert 0 <= purse["wasted"] <= purse["allowed"]
    left = toy(branching={"default_clip": False})
    losses = [t.loss for t in left.advance(16)]
    assert read_telemetry(found.path)["loss"][:16].tolist() == losses


def test_a_disk_that_fills_up_after_the_branch_was_taken_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
