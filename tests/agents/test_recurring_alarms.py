"""Alarms that come back: a structural cause, and replays that tell data from hardware."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.steered_runs import Promising, ruin, steered, tokens, toy
from trainenv.agents.branching.recurrence import Recurrence
from trainenv.report.run.run_report import RunReport
from trainenv.run import TrainingRun
from trainenv.types import Intervention


def test_a_cause_that_no_answer_mends_looks_structural_and_the_rate_is_left() -> None:
    """The run is ruined at step 48 whatever the learning rate is."""
    run = toy(branching={"triggers": [], "rewind": 1, "max_waste": 0.9})
    original: Any = run.objective

    def wild(model: Any, micro: Any, /) -> Any:
        if torch.is_grad_enabled() and run.step >= 48:
            ruin(model)
        return original(model, micro)

    run.objective = wild
    found = steered(run, planner=Promising(sequences=[]))
    assert found.summary["ended"] == "diverged"
    (gave_up,) = found.of("gave_up")
    assert "after each of 10 answers" in gave_up["detail"]["reason"]
    assert "looks structural" in gave_up["detail"]["reason"]
    assert len(found.of("rewind")) == 10
    # The last answer is to go back; the rate is not lowered again.
    assert found.run.lr_scale == pytest.approx(0.8**9)


def test_a_rate_that_is_far_too_high_is_lowered_until_it_suits() -> None:
    """Eight answers in a row are no structural cause if the ninth would have helped."""
    run = toy(branching={"triggers": [], "rewind": 1, "max_waste": 0.9})
    original: Any = run.objective

    def wild(model: Any, micro: Any, /) -> Any:
        if torch.is_grad_enabled() and run.step >= 48 and run.lr_scale > 0.15:
            ruin(model)
        return original(model, micro)

    run.objective = wild
    found = steered(run, planner=Promising(sequences=[]))
    assert found.summary["ended"] == "budget spent"
    assert found.of("gave_up") == []


def test_alarms_at_other_places_are_no_row() -> None:
    row = Recurrence()
    for at in range(100, 3000, 200):
        row.note(at, rate=1.0, within=50)
    assert row.alarms == [2900]
    for _ in range(8):
        row.note(2900, rate=0.5, within=50)
    assert not row.looks_structural
    row.note(2930, rate=0.125, within=50)
    assert row.looks_structural
    assert Recurrence.of(row.state_dict()) == row
    assert not Recurrence.of({}).looks_structural


# ── replays ───────────────────────────────────────────────────────────────────────────────────────

ASKED = {"triggers": [], "rewind": 1, "max_waste": 0.9, "replay_alarms": True}


def ruined_by_data(run: TrainingRun) -> TrainingRun:
    """The data of index 49 ruin the weights, whenever they are trained on."""
    original: Any = run.objective

    def bad(model: Any, micro: Any, /) -> Any:
        if torch.is_grad_enabled() and torch.equal(micro, tokens(49)):
            ruin(model)
        return original(model, micro)

    run.objective = bad
    return run


def test_alarm_that_repeats_to_the_bit_is_of_the_data_or_the_state() -> None:
    found = steered(ruined_by_data(toy(branching=ASKED)), planner=Promising(sequences=[]))
    first = found.of("replay")[0]
    assert first["detail"]["repeats"]
    assert first["detail"]["reason"] == (
        "steps 49 to 52 repeat to the bit, so the alarm comes from the data or the state"
    )
    kinds = [event["kind"] for event in found.events]
    assert kinds.index("replay") + 1 == kinds.index("rewind")
    assert "the data or the state" in RunReport(found.path).tree(200)
    wasted = found.callback.state_dict()["purse"]
    assert wasted["wasted"] >= 2 * 4 * found.run.flops_per_step
    assert wasted["wasted"] <= wasted["allowed"]


def test_alarm_that_does_not_repeat_is_of_the_hardware() -> None:
    """The machine ruins the weights at step 50, and not when the step is taken again."""
    run = toy(branching=ASKED)
    original: Any = run.objective
    ruined = []

    def faulty(model: Any, micro: Any, /) -> Any:
        if torch.is_grad_enabled() and run.step == 49 and not ruined:
            ruined.append(run.step)
            ruin(model)
        return original(model, micro)

    run.objective = faulty
    found = steered(run, planner=Promising(sequences=[]))
    (replayed,) = found.of("replay")
    assert not replayed["detail"]["repeats"]
    assert replayed["detail"]["reason"] == (
        "step 50 does not repeat to the bit from step 48: suspect hardware"
    )


def test_no_replay_unless_it_is_asked_for_and_comparable() -> None:
    plain = toy(branching=ASKED | {"replay_alarms": False})
    assert steered(ruined_by_data(plain), planner=Promising(sequences=[])).of("replay") == []
    changed = ruined_by_data(toy(branching=ASKED))

    def watch(run: Any, window: Any) -> None:
        if run.step == 48:
            run.apply(Intervention(weight_decay_scale=0.5))

    steps = steered(changed, planner=Promising(sequences=[]), watch=watch).of("replay")
    assert all(event["step"] != 52 for event in steps)
