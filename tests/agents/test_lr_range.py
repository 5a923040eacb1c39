"""The start of a run as a range test: when it asks, for what, and that only what is better at once becomes the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.steered_runs import SMALL, Promising, Steered, steered, toy
from trainenv.agents.branching import Branching, PlanningOptions
from trainenv.agents.branching.lr_range import RangeTest
from trainenv.config.schema import RunConfig
from trainenv.interventions import PARTS
from trainenv.loop import train
from trainenv.records.run_folder import RunFolder
from trainenv.run import TrainingRun
from trainenv.types import Telemetry, UserError
from trainenv.verification.replay import Replay

COSINES = st.lists(st.one_of(st.floats(-1, 1), st.just(math.nan)), max_size=130)


def seen(cosines: Iterable[float], first: int = 1) -> list[Telemetry]:
    """Steps in which the gradient lay so to the update before it."""
    still: tuple[Any, ...] = (8, 2.0, 1.0, 1.0, math.inf, 0.0, "none", 0.1, 1.0, 0.1, 1.0, -1, 0.0)
    return [
        Telemetry(step, step, *still, hypergradient_cosine=cosine)
        for step, cosine in enumerate(cosines, start=first)
    ]


def watched(cosines: Iterable[float], warmup: int) -> RangeTest:
    test = RangeTest(warmup)
    test.observe(seen(cosines))
    return test


def asked(cosines: Sequence[float], warmup: int) -> tuple[int, float] | None:
    """The step at which it asks for the first time, and for what."""
    for end in range(1, len(cosines) + 1):
        if (asks := watched(cosines[:end], warmup).factor) is not None:
            return end, asks
    return None


def test_too_high_is_where_the_mean_is_down_at_zero() -> None:
    assert asked([0.2] * 10 + [-0.2] * 10, 20) == (
        12,
        0.5 * 12 / 20,
    )  # two and two within the last four
    assert asked([-0.2] * 20, 20) == (5, 0.5 * 5 / 20)  # a quarter of the warm-up
    assert asked([0.2] * 20, 20) is None
    assert asked([0.2] * 17 + [-0.9] * 3, 20) is None  # the rate is as good as at its height


def test_too_low_is_where_it_still_agrees_after_the_warm_up() -> None:
    noisy = [0.3, 0.1] * 30
    assert asked(noisy, 20) == (30, 2.0)  # half a warm-up after it
    assert asked(noisy[:20] + [0.1, -0.1] * 20, 20) is None
    assert asked(noisy[:20] + [0.1, -0.1] * 10 + noisy[:20], 20) == (
        47,
        2.0,
    )  # seven of the last twenty agree
    late = RangeTest(20)  # of a run that it is to watch from step 36 on
    late.observe(seen(noisy[:9], first=36))
    assert late.factor is None
    late.observe(seen(noisy[9:10], first=45))
    assert late.factor == 2.0
    assert (
        asked(noisy[:20] + [-0.2, 0.2] * 20 + noisy, 20) is None
    )  # three warm-ups are the start of a run


def test_a_warm_up_of_a_few_steps_says_nothing() -> None:
    assert asked([-0.2] * 60, 9) is asked([0.3, 0.1] * 30, 9) is None
    assert asked([-0.2] * 60, 10) == (4, 0.5 * 4 / 10)


def test_what_it_asks_for_is_drafted_once() -> None:
    test = watched([0.2] * 10 + [-0.2] * 2, 20)
    plan = test.propose(12)
    assert [one.interventions[0].lr_scale for one in plan.candidates] == [0.5 * 12 / 20, 1.0]
    assert plan.best is not plan.control
    assert plan.planner == "range-test"
    test.observe(seen([-0.2] * 8, first=13))
    assert test.factor is None  # nor is a rate lowered twice
    test.observe(seen([0.3, 0.1] * 20, first=21))
    assert test.factor == 2.0  # but it may have been lowered too far


@given(cosines=COSINES, warmup=st.integers(0, 40))
def test_it_asks_at_the_start_or_never(cosines: list[float], warmup: int) -> None:
    found = asked(cosines, warmup)
    if found is None:
        return
    step, factor = found
    if factor < 1:
        assert warmup / 4 <= step <= 5 / 6 * warmup
        assert any(cosine <= 0 for cosine in cosines)
    else:
        assert 1.5 * warmup <= step <= 3 * warmup
        assert any(cosine > 0 for cosine in cosines)


@given(cosines=COSINES, warmup=st.integers(0, 40), cut=st.integers(0, 130))
def test_windows_and_interrupts_change_nothing(cosines: list[float], warmup: int, cut: int) -> None:
    first = watched(cosines[:cut], warmup)
    second = RangeTest(warmup)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.observe(seen(cosines[cut:], first=cut + 1))
    assert second.state_dict() == watched(cosines, warmup).state_dict()


def test_steps_that_are_taken_again_count_once() -> None:
    test = watched([0.5, 0.5, 0.5, -0.1, -0.1, -0.1], 20)
    test.observe(seen([-0.1, -0.1, -0.1], first=4))  # rewound to step 3
    assert test.state_dict() == watched([0.5, 0.5, 0.5, -0.1, -0.1, -0.1], 20).state_dict()


# ── in the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────────


Lie = Callable[[Callable[[int], float]], None]


@pytest.fixture(autouse=True)
def lie(monkeypatch: pytest.MonkeyPatch, alarms: Any) -> Lie:
    """Say how gradients lie to the updates, by the updates that were made; they turn at 16 unless something else is said."""

    def to(cosine: Callable[[int], float]) -> None:
        def measured(
            parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer
        ) -> tuple[torch.Tensor, torch.Tensor]:
            made = int(optimizer.state.get(parameters[0], {}).get("step", 0))
            return torch.tensor(cosine(made)), torch.tensor(1e-3)

        monkeypatch.setattr("trainenv.monitor.hypergradient.hypergradient", measured)

    to(lambda made: 0.2 if made < 16 else -0.2)
    return to


def warmed(lr: float, bounds: tuple[float, float] = (0.01, 10.0), **branching: Any) -> Steered:
    """A run that warms up for 40 steps, steered."""
    settings = {
        "triggers": ["warmup"],
        "verify_steps": 3,
        "replayable": False,
        "max_waste": 0.9,
    } | branching
    run = toy(
        160, lr=lr, schedule={"warmup": 40}, interventions={"lr_bounds": bounds}, branching=settings
    )
    return steered(run, planner=Promising())


def test_a_rate_on_its_way_too_high_is_lowered() -> None:
    found = warmed(lr=20.0)
    (decision,) = found.decisions
    assert (decision["why"], decision["at"], decision["accepted"]) == ("warmup", 20, 1)
    assert (decision["planner"]["name"], decision["verification"]["rule"]) == (
        "range-test",
        "better",
    )
    assert decision["verification"]["verify_steps"] == 12  # four times as long as usual
    assert len(decision["branches"]) == 2
    assert found.run.lr_scale == pytest.approx(0.5 * 19 / 40)
    assert decision["branches"][1]["delta"] < 0


def test_a_rate_that_is_right_is_left_alone() -> None:
    found = warmed(lr=0.3)
    (decision,) = found.decisions
    assert (decision["why"], decision["at"], decision["accepted"]) == ("warmup", 20, None)
    assert "it is not better by" in decision["branches"][1]["reason"]
    assert found.run.lr_scale == 1.0


def test_a_rate_that_is_too_low_is_doubled_until_it_is_not(lie: Lie) -> None:
    lie(lambda made: 0.3 - 0.2 * (made % 4 == 0))
    found = warmed(lr=1e-2)
    assert [(one["why"], one["accepted"]) for one in found.decisions] == [("warmup", 1)] * len(
        found.decisions
    )
    assert [one["at"] for one in found.decisions] == [64, 88]  # each after half a warm-up
    assert found.run.lr_scale == 4.0


def test_a_sign_that_misleads_is_found_out(lie: Lie) -> None:
    lie(lambda made: 0.3 - 0.2 * (made % 4 == 0))
    found = warmed(lr=20.0)
    assert found.decisions
    assert {one["accepted"] for one in found.decisions} == {None}
    assert found.run.lr_scale == 1.0


def test_it_stays_within_bounds() -> None:
    found = warmed(lr=20.0, bounds=(0.5, 2.0))
    (decision,) = found.decisions
    assert (decision["branches"][1]["fate"], decision["accepted"]) == ("failed", None)
    assert "must stay within [0.5, 2]" in decision["branches"][1]["reason"]
    assert decision["cost"]["steps"] == 12  # of doing nothing, and they are kept


def test_planners_are_not_asked() -> None:
    found = warmed(lr=0.3, triggers=["warmup", "checkpoint"], every=24)
    assert [decision["why"] for decision in found.decisions][:2] == ["warmup", "checkpoint"]
    assert [decision["why"] for decision in found.decisions].count("warmup") == 1
    assert len(found.callback.planner.problems) == len(found.decisions) - 1 + len(
        found.of("skipped")
    )  # type: ignore[attr-defined]
    assert found.decisions[1]["verification"]["rule"] == "agreement"


def test_drafts_stay_within_reach_of_what_it_found() -> None:
    found = warmed(
        lr=20.0, triggers=["warmup", "checkpoint"], every=40, max_lr_factor=1.0, harm=1e9
    )
    assert found.decisions[0]["accepted"] == 1
    problem = found.callback.planner.problems[0]  # type: ignore[attr-defined]
    raised = [bool(allowed) for allowed in problem.masks[PARTS.index("lr_scale")]]
    assert raised == [scale <= 1 for scale in found.run.config.interventions.lr_scales]


def test_it_can_be_switched_off() -> None:
    assert warmed(lr=20.0, triggers=[]).decisions == []


def test_no_more_is_thrown_away_than_was_said() -> None:
    found = warmed(lr=20.0, max_waste=0.01)
    assert found.decisions == []
    (skipped,) = found.of("skipped")
    assert skipped["detail"]["reason"].startswith("no budget is left")


def test_a_warm_up_of_a_tiny_model_is_decided_and_replayed(tmp_path: Path) -> None:
    branching = {"triggers": ["warmup"], "verify_steps": 2, "max_waste": 0.5, "default_clip": False}
    config = RunConfig.load(
        "tiny",
        SMALL | {"steps": 60, "schedule.warmup": 40, "optimizer.lr": 0.5, "branching": branching},
    )
    run = TrainingRun.from_config(config)
    train(run, RunFolder.create(tmp_path / "run", config), callback=Branching(planner=Promising()))
    replay = Replay.of(tmp_path / "run", "20")
    assert replay.agrees
    assert replay.accepted == (1, 1)


def test_neither_planner_nor_model_is_asked_where_the_warm_up_has_a_draft() -> None:
    """A model refuses a history of a few steps, and a warm-up is short."""

    def refuse(*_: object) -> Any:
        raise UserError("at least 16 steps")

    settings = {"triggers": ["warmup"], "verify_steps": 3, "max_waste": 0.9}
    run = toy(160, lr=20.0, schedule={"warmup": 40}, branching=settings)
    found = steered(run, planner=Promising(), planning=PlanningOptions(allow=refuse))
    assert found.decisions[0]["accepted"] == 1
    assert found.summary["faults"] == []
