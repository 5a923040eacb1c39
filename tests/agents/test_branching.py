"""The loop on a run: when it acts, what it drafts, how it goes back, what it puts in force."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.steered_runs import (
    HIGHER,
    LOWER,
    NOTHING,
    Dreamer,
    Promising,
    Steered,
    refused,
    ruin,
    steered,
    toy,
)
from trainenv import planners
from trainenv.agents.branching import Branching, PlanningOptions
from trainenv.agents.branching.problems import ramps
from trainenv.agents.branching.rewind_points import RewindPoints
from trainenv.checkpoints.store import CheckpointStore
from trainenv.composition.default_loop import allow_by_risk
from trainenv.interventions import PARTS, ActionCodec, after
from trainenv.monitor.regression import RegressionTrigger
from trainenv.records.telemetry_log import read_telemetry
from trainenv.run import TrainingRun
from trainenv.types import Candidate, Intervention, Plan, PlanningProblem, RunHistory, UserError

KICK = {60: -200.0}  # harm that stays
HEALS = {60: -200.0, 62: 200.0}


pytestmark = pytest.mark.usefixtures("alarms")


def whys(of: Steered) -> list[tuple[int, str]]:
    return [(decision["at"], decision["why"]) for decision in of.decisions]


# ── when ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_continuous_correction_comes_every_so_many_steps() -> None:
    found = steered(
        toy(200, branching={"max_waste": 0.9, "every": 24}), planner=Promising(sequences=[(LOWER,)])
    )
    asked = whys(found)
    assert [at for at, _ in asked] == [24 * k for k in range(1, 1 + len(asked))]
    assert {why for _, why in asked} == {"checkpoint"}
    assert len(asked) >= 3


@pytest.mark.parametrize("trigger", ["fired", "regression", "checkpoint"])
def test_each_trigger_by_itself(
    trigger: str, alarms: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms(61)
    worse = ["", "it has become worse"]
    monkeypatch.setattr(
        RegressionTrigger, "validated", lambda self, step, loss: worse.pop() if step == 40 else ""
    )
    found = steered(
        toy(branching={"triggers": [trigger]}, validation={"every": 40}), planner=Promising()
    )
    expected = {"fired": [(64, "fired")], "regression": [(44, "regression")]}
    assert (
        whys(found) == expected[trigger]
        if trigger in expected
        else [why for _, why in whys(found)][:2] == ["checkpoint"] * 2
    )
    assert {why for _, why in whys(found)} == {trigger}


def test_without_triggers_nothing_is_done(alarms: Callable[..., None]) -> None:
    alarms(61)
    planner, run, left = (
        Promising(),
        toy(kicked=KICK, branching={"triggers": [], "default_clip": False}),
        toy(kicked=KICK),
    )
    assert steered(run, planner=planner).decisions == planner.problems == []
    left.advance(120)
    assert run.fingerprint() == left.fingerprint()


def test_alarms_soon_after_a_decision_are_not_answered(alarms: Callable[..., None]) -> None:
    alarms(30, 35, 41, 55)
    found = steered(
        toy(branching={"triggers": ["fired"], "refractory_steps": 20, "max_waste": 0.9}),
        planner=Promising(),
    )
    assert whys(found) == [(32, "fired"), (56, "fired")]


def test_the_end_of_a_run_is_left_alone() -> None:
    found = steered(
        toy(branching={"every": 4, "verify_steps": 8, "max_waste": 0.0001}), planner=Promising()
    )
    assert [event["step"] for event in found.of("skipped")] == list(range(4, 120 - 32, 4))
    assert all(
        event["detail"]["reason"].startswith("no budget is left") for event in found.of("skipped")
    )


def test_it_waits_twice_as_long_and_gives_up(alarms: Callable[..., None]) -> None:
    alarms(190)
    run = toy(400, branching={"every": 12, "patience": 2, "max_waste": 0.9, "top_k": 1})
    found = steered(run, planner=refused())
    assert [decision["at"] for decision in found.decisions] == [
        12,
        24,
        48,
        72,
    ]  # the third is decided with two in a row
    assert [decision["accepted"] for decision in found.decisions] == [None] * 4
    gave_up = found.of("gave_up")
    assert [(event["step"], event["detail"]["reason"]) for event in gave_up] == [
        (gave_up[0]["step"], "4 drafts in a row were not accepted")
    ]
    assert found.of("fired")  # and nobody answered it


# ── going back ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_harm_that_stays_is_rewound(alarms: Callable[..., None]) -> None:
    alarms(61)
    found = steered(toy(kicked=KICK, branching={"triggers": ["fired"]}), planner=Promising())
    rewind = found.of("rewind")[0]
    assert rewind["step"] == 72  # `quiet` steps after the alarm, at the end of the block
    assert rewind["detail"]["to"] == 48  # the newest that is `rewind` steps before it
    assert rewind["detail"]["harm"] > 1
    second = found.decisions[1]
    assert (second["why"], second["at"], second["step"]) == ("fired", 72, 48)
    assert second["harm"] == rewind["detail"]["harm"]
    assert found.summary["flops"]["rewound"] == 24 * found.run.flops_per_step


def test_a_run_that_has_been_hurt_does_not_raise_its_learning_rate(
    alarms: Callable[..., None],
) -> None:
    alarms(61)
    planner = Promising(sequences=[(LOWER,)])
    steered(toy(kicked=KICK, branching={"triggers": ["fired"]}), planner=planner)
    before, after_it = planner.problems[0], planner.problems[1]
    assert (before.history.telemetry[-1].step, after_it.history.telemetry[-1].step) == (64, 48)
    assert after_it.masks[0].tolist() == [True, True, True, False]
    alarms()
    calm = Promising(sequences=[(LOWER,)])
    steered(toy(), planner=calm)
    assert all(problem.masks[0].all() for problem in calm.problems)


def test_no_raise_is_drafted_where_the_index_fired_since_the_last_checkpoint(
    alarms: Callable[..., None],
) -> None:
    alarms(29)
    planner = Promising(sequences=[(LOWER,)])
    steered(toy(branching={"triggers": ["checkpoint"], "rule": "better"}), planner=planner)
    raised = {one.history.telemetry[-1].step: bool(one.masks[0][-1]) for one in planner.problems}
    assert raised[16]
    assert not raised[32]
    assert raised[48]
    bounds = {
        one.history.telemetry[-1].step: one.rate_bounds
        for one in planner.problems
        if one.rate_bounds is not None
    }
    assert bounds[32][1] == 1.0
    assert bounds[48][1] > 1.0


def test_harm_that_heals_is_not(alarms: Callable[..., None]) -> None:
    alarms(61)
    found = steered(toy(kicked=HEALS, branching={"triggers": ["fired"]}), planner=Promising())
    assert [why for _, why in whys(found)] == ["fired"]
    assert found.of("rewind") == []
    assert max(read_telemetry(found.path)["probe_loss"][60:63]) > 2.5  # it was harm


def test_an_alarm_in_the_steps_of_a_branch_counts(alarms: Callable[..., None]) -> None:
    """Those steps are the run's own; what they see of harm is not lost because nobody was asked in between."""
    alarms(50)
    found = steered(toy(kicked={49: -200.0}), planner=Promising(sequences=[(LOWER,)]))
    assert (48, "checkpoint") in whys(found)
    assert [(event["step"] > 50, event["detail"]["to"] <= 42) for event in found.of("rewind")][
        :1
    ] == [(True, True)]


def loses(run: TrainingRun, *steps: int) -> TrainingRun:
    """The weights are lost while these steps are trained, and in every branch that starts there."""
    objective: Any = run.objective

    class Lost:
        def __call__(self, model: Any, micro: Any, /) -> Any:
            if torch.is_grad_enabled() and run.step + 1 in steps:
                ruin(model)
            return objective(model, micro)

    run.objective = Lost()
    return run


def test_a_loss_that_is_lost_is_rewound_to_the_newest_snapshot_and_calmed() -> None:
    class Silent(Promising):
        def plan(self, problem: PlanningProblem, /) -> Plan:
            return Plan(
                planner="silent", candidates=(Candidate(interventions=(NOTHING,), score=0.0),)
            )

    run = toy(branching={"triggers": [], "rewind": 1, "default_clip": False})
    objective: Any = run.objective

    def wild(model: Any, micro: Any, /) -> Any:
        """Lost for as long as the learning rate is what it was."""
        return objective(model, micro) * (
            math.nan if run.step >= 49 and run.lr_scale == 1.0 else 1.0
        )

    run.objective = wild
    found = steered(run, planner=Silent())
    assert [(e["step"], e["detail"]["to"]) for e in found.of("rewind")] == [(52, 48)]
    assert found.run.step == 116
    assert found.of("intervention")[0]["detail"] == {"lr_scale": 0.8, "clip": "zclip"}
    assert found.of("skipped")[0]["detail"]["reason"] == "no draft promises enough"
    assert found.summary["ended"] == "budget spent"


def test_what_was_calmed_stays_calmed_when_it_is_lost_again() -> None:
    """Going back to the same place over and over with the same learning rate would come to the same over and over."""
    run = toy(branching={"triggers": [], "rewind": 1})
    original: Any = run.objective

    def wild(model: Any, micro: Any, /) -> Any:
        if torch.is_grad_enabled() and run.step >= 48 and run.lr_scale > 0.6:
            ruin(model)
        return original(model, micro)

    run.objective = wild
    found = steered(run, planner=Promising(sequences=[]))
    assert [event["detail"]["to"] for event in found.of("rewind")] == [48] * 3
    assert [event["detail"]["lr_scale"] for event in found.of("rewind")] == pytest.approx(
        [1.0, 0.8, 0.64]
    )
    assert (found.run.lr_scale, found.summary["ended"]) == (pytest.approx(0.512), "budget spent")


def test_with_nothing_to_go_back_to_the_divergence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewindPoints, "remember", lambda self, run, *, most: None)
    found = steered(loses(toy(), *range(50, 80)), planner=Promising(sequences=[]))
    assert found.summary["ended"] == "diverged"
    assert [event["kind"] for event in found.events][-1] == "diverged"
    assert found.of("rewind") == []


def test_a_run_that_is_lost_from_the_start_is_not_taken_back_for_ever() -> None:
    run = toy(40, branching={"triggers": ["fired"], "max_waste": 0.5})
    found = steered(
        loses(run, *range(1, 100)), Branching(planner=planners.make("grid"), model=Dreamer())
    )
    assert found.summary["ended"] == "diverged"
    assert found.of("rewind")
    purse = found.callback.state_dict()["purse"]
    assert 0 < purse["wasted"] <= purse["allowed"]
    assert found.of("skipped")[-1]["detail"]["reason"].startswith(
        "the run has diverged, and going back throws away 4 steps"
    )


@pytest.mark.parametrize("steps", [0, 5])  # that are left of it
def test_little_telemetry_is_a_fault_that_is_told(steps: int) -> None:
    """The shipped loop asks its model at once, and a model must refuse a run of a few steps."""

    class Refusing(Dreamer):
        def forecast(self, history: RunHistory, interventions: Sequence[Any], /) -> Any:
            if len(history.telemetry) < 16:
                raise UserError("at least 16 steps")
            return super().forecast(history, interventions)

    lost = loses(toy(60, branching={"rewind": 1}, checkpoints={"every": 5}), steps + 4)
    callback = Branching(
        planner=Promising(), model=Refusing(), planning=PlanningOptions(allow=allow_by_risk)
    )
    found = steered(lost, callback)
    assert (
        found.summary["ended"] == "diverged"
    )  # at the same step each time, until nothing may be thrown away any more
    assert found.of("skipped")[0]["detail"]["reason"] == "at least 16 steps"


# ── what is put in force ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("policy", "insure", "clip"),
    [
        ("none", True, "zclip"),
        ("none", False, "none"),
        ("arc", True, "arc"),
        ("zclip", True, "zclip"),
    ],
)
def test_insured_at_the_start_where_nothing_clips(policy: str, insure: bool, clip: str) -> None:
    found = steered(
        toy(40, clip={"policy": policy}, branching={"default_clip": insure, "triggers": []}),
        planner=Promising(),
    )
    assert found.run.clip == clip
    said = [event["detail"] for event in found.of("intervention")]
    assert said == ([{"clip": "zclip"}] if policy == "none" and insure else [])
    assert (found.of("intervention") or [{"step": 0}])[0]["step"] == 0


def test_insured_before_the_first_step() -> None:
    """The gradient of the first step is in the moments for long."""
    found = steered(
        toy(40, clip={"policy": "none"}, branching={"triggers": []}), planner=Promising()
    )
    assert set(read_telemetry(found.path)["clip"]) == {"zclip"}


def test_insured_still_where_a_rewind_went_back_to_the_start_and_not_against_a_decision(
    alarms: Callable[..., None],
) -> None:
    alarms(13)
    kicked = toy(branching={"rewind": 13, "triggers": ["fired"]}, kicked={12: -200.0})
    early = steered(kicked, planner=Promising(sequences=[(LOWER,)]))
    assert early.of("rewind")[0]["detail"]["to"] == 0
    assert [e["line"] for e in early.of("intervention") if e["detail"].get("clip") == "zclip"] == [
        0
    ]
    assert early.run.clip == "zclip"
    alarms()
    bare = Promising(sequences=[(Intervention(clip="none"),)])
    chosen = steered(toy(branching={"parts": ["clip"]}), planner=bare)
    assert any(decision["accepted"] for decision in chosen.decisions)
    assert chosen.run.clip == "none"


def test_later_parts_come_due_and_those_out_of_bounds_are_dropped() -> None:
    bounds = {"lr_bounds": (0.7, 2.0)}
    once: dict[str, Any] = {"every": 64, "verify_steps": 4, "max_waste": 0.9}
    four = Promising(sequences=[(LOWER, HIGHER, NOTHING, HIGHER)])
    found = steered(toy(branching=once, interventions=bounds), planner=four)
    pending = [event for event in found.of("intervention") if event["detail"].get("pending")]
    assert [(event["step"], event["detail"]["lr_scale"]) for event in pending] == [
        (72, 1.1),
        (88, 1.1),
    ]
    assert found.run.lr_scale == pytest.approx(0.8 * 1.1 * 1.1)
    low = steered(
        toy(branching=once, interventions=bounds),
        planner=Promising(sequences=[(LOWER, LOWER, HIGHER)]),
    )
    assert [e["step"] for e in low.of("intervention") if e["detail"].get("pending")] == [80]
    assert low.run.lr_scale == pytest.approx(0.8 * 1.1)


def test_what_came_due_within_the_branch_is_not_put_in_force_twice(
    alarms: Callable[..., None],
) -> None:
    alarms(64)
    within = {"every": 64, "verify_steps": 16, "max_waste": 0.9}
    found = steered(
        toy(300, branching=within | {"triggers": ["fired"]}),
        planner=Promising(sequences=[(LOWER, HIGHER, HIGHER)]),
    )
    scales = read_telemetry(found.path).set_index("step")["lr_scale"]
    assert found.decisions[0]["accepted"] == 1
    assert scales[[64, 65, 72, 73, 80, 81, 90]].tolist() == pytest.approx(
        [1, 0.8, 0.8, 0.88, 0.88, 0.968, 0.968]
    )
    assert found.run.lr_scale == pytest.approx(0.8 * 1.1 * 1.1)


# ── what is drafted and verified ──────────────────────────────────────────────────────────────────────────────────────────────


def test_parts_are_restricted_now_and_later() -> None:
    planner = Promising(sequences=[(LOWER,)])
    steered(toy(branching={"parts": ["lr_scale"]}), planner=planner)
    problem = planner.problems[0]
    assert problem.masks_after is not None
    for masks in (
        problem.masks,
        problem.masks_after([LOWER]),
        problem.masks_after([LOWER, Intervention(clip="arc")]),
    ):
        assert [mask.tolist() for mask in masks] == [
            [True] * 4,
            *[[True, *[False] * (n - 1)] for n in (3, 5, 2, 2, 2)],
        ]
    wide = Promising(sequences=[(LOWER,)])
    steered(toy(branching={"parts": PARTS}), planner=wide)
    assert wide.problems[0].masks[1].all()
    assert wide.problems[0].masks[3].all()


def test_masks_later_are_of_what_would_be_in_force() -> None:
    run, codec = (
        toy(interventions={"lr_bounds": (0.6, 2.0)}),
        ActionCodec(toy().config.interventions),
    )
    codec = ActionCodec(run.config.interventions)
    twice = after(run, LOWER, LOWER, Intervention(clip="zclip", weight_decay_scale=0.5))
    assert (twice.lr_scale, twice.weight_decay_scale, twice.clip) == (
        pytest.approx(0.64),
        0.5,
        "zclip",
    )
    run.apply(LOWER)
    run.apply(LOWER)
    run.apply(Intervention(clip="zclip", weight_decay_scale=0.5))
    for one, two in zip(codec.masks(twice), codec.masks(run), strict=True):
        np.testing.assert_array_equal(one, two)
    assert codec.masks(twice)[0].tolist() == [True, False, False, True]
    assert after(run, Intervention(skip_batch=True)).flagged_ahead == ()


def test_ramps_are_each_legal_change_of_the_learning_rate_up_to_four_times() -> None:
    run = toy()
    codec = ActionCodec(run.config.interventions)
    found = ramps(codec, codec.masks(run))
    assert found == [
        (Intervention(lr_scale=scale),) * times
        for scale in (0.8, 0.9, 1.1)
        for times in (1, 2, 3, 4)
    ]
    planner = Promising(sequences=[(LOWER,)])
    mine = [(Intervention(clip="arc"),)]
    steered(
        toy(), planner=planner, planning=PlanningOptions(propose=lambda history, codec, masks: mine)
    )
    assert list(planner.problems[0].proposals) == [*mine, *found]


def test_doing_nothing_is_forecast_in_every_draft_and_first_in_every_verification() -> None:
    run, left = toy(branching={"default_clip": False}), toy()
    found = steered(run, planner=planners.make("grid"), model=Dreamer())
    assert len(found.decisions) >= 3
    for decision in found.decisions:
        control, *others = decision["branches"]
        assert (
            control["control"],
            control["interventions"],
            control["forecast"]["horizon"]["mean"],
        ) == (True, [{}], 0.0)
        assert others
        assert not any(branch["control"] for branch in others)
        # On the same batches: before what was done shows, the losses are the same to the bit.
        assert len({branch["losses"][0] for branch in decision["branches"]}) == 1
        assert (
            len(
                {
                    tuple(branch["outcome"]["looks"])
                    for branch in decision["branches"]
                    if not branch["outcome"]["error"]
                }
            )
            == 1
        )
    first = found.decisions[0]
    own = [t.loss for t in left.advance(first["step"] + len(first["branches"][0]["losses"]))]
    assert first["branches"][0]["losses"] == own[first["step"] :]


def test_the_deque_of_rewind_points_is_what_is_on_disk() -> None:
    found = steered(toy(branching={"rewind_points": 3}), planner=Promising())
    assert len(found.callback.state_dict()["remembered"]) == 3
    saved = CheckpointStore(found.path / "checkpoints").steps()
    assert set(found.callback.state_dict()["remembered"]) <= set(saved)
    few = steered(
        toy(branching={"rewind_points": 9}, checkpoints={"every": 8, "keep_last": 2}),
        planner=Promising(),
    )
    assert len(few.callback.state_dict()["remembered"]) == 2


RAISES = PARTS.index("lr_scale"), 3  # where the masks say whether the rate may be raised by a tenth


@pytest.mark.parametrize(
    ("reach", "allowed"), [(1.0, []), (1.15, [True]), (1.25, [True, True]), (2.0, [True] * 3)]
)
def test_drafts_stay_within_reach(reach: float, allowed: list[bool]) -> None:
    part, value = RAISES
    planner = Promising(sequences=[(HIGHER,)])
    steered(toy(branching={"max_lr_factor": reach, "max_waste": 0.9}), planner=planner)
    may = [bool(problem.masks[part][value]) for problem in planner.problems[:3]]
    assert may == (allowed + [False] * 3)[:3]


@pytest.mark.parametrize(("reach", "came_to"), [(1.15, 1.1), (2.0, 1.1**2)])
def test_what_is_left_of_a_sequence_stays_within_reach(reach: float, came_to: float) -> None:
    run = toy(branching={"max_lr_factor": reach, "every": 60})
    steered(run, planner=Promising(sequences=[(HIGHER, HIGHER)]))
    assert run.lr_scale == pytest.approx(came_to)
