"""The warm-up as a range test: when the gradient turns, what is drafted, and that only what is better at once becomes the run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steered_runs import SMALL, Promising, Steered, steered, toy

from agents.branching import Branching
from agents.branching.range_test import RangeTest
from trainenv.config import RunConfig
from trainenv.driving import drive
from trainenv.records.folder import RunFolder
from trainenv.run import TrainingRun
from trainenv.types import Telemetry
from trainenv.wrappers.replay import Replay

COSINES = st.lists(st.one_of(st.floats(-1, 1), st.just(math.nan)), max_size=80)


def seen(cosines: Iterable[float], first: int = 1) -> list[Telemetry]:
    """Steps in which the gradient lay so to the update before it."""
    still: tuple[Any, ...] = (8, 2.0, 1.0, 1.0, math.inf, 0.0, "none", 0.1, 1.0, 0.1, 1.0, -1, 0.0)
    return [Telemetry(step, step, *still, hypergradient_cosine=cosine) for step, cosine in enumerate(cosines, start=first)]


def watched(cosines: Iterable[float], warmup: int) -> RangeTest:
    test = RangeTest(warmup)
    test.see(seen(cosines))
    return test


def test_it_turns_where_the_mean_is_down_at_zero() -> None:
    assert watched([0.2] * 10 + [-0.2] * 10, 20).turned == 12  # two and two within the last four
    assert watched([0.2] * 20, 20).turned is None
    assert watched([0.2] * 17 + [-0.9] * 3, 20).turned is None  # the rate is as good as at its height
    assert watched([-0.2] * 20, 20).turned == 5  # a quarter of the warm-up


def test_half_of_the_rate_at_which_it_turned_is_drafted() -> None:
    plan = watched([0.2] * 10 + [-0.2] * 10, 20).draft()
    assert [one.interventions[0].lr_scale for one in plan.candidates] == [0.5 * 12 / 20, 1.0]
    assert plan.best is not plan.control
    assert plan.planner == "range-test"


@given(cosines=COSINES, warmup=st.integers(0, 80))
def test_it_turns_within_the_warm_up_or_never(cosines: list[float], warmup: int) -> None:
    turned = watched(cosines, warmup).turned
    assert turned is None or warmup / 4 <= turned <= 5 / 6 * warmup
    if all(not cosine <= 0 for cosine in cosines):
        assert turned is None


@given(cosines=COSINES, warmup=st.integers(0, 80), cut=st.integers(0, 80))
def test_windows_and_interrupts_change_nothing(cosines: list[float], warmup: int, cut: int) -> None:
    first = watched(cosines[:cut], warmup)
    second = RangeTest(warmup)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.see(seen(cosines[cut:], first=cut + 1))
    assert second.state_dict() == watched(cosines, warmup).state_dict()


def test_steps_that_are_taken_again_count_once() -> None:
    test = watched([0.5, 0.5, 0.5, -0.1, -0.1, -0.1], 20)
    test.see(seen([-0.1, -0.1, -0.1], first=4))  # rewound to step 3
    assert test.state_dict() == watched([0.5, 0.5, 0.5, -0.1, -0.1, -0.1], 20).state_dict()


# ── in the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def turning(monkeypatch: pytest.MonkeyPatch, alarms: Any) -> None:
    """Gradients that agree with the updates for some steps, and then do not."""
    looks = iter(range(10**6))

    def measured(parameters: Any, optimizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(0.2 if next(looks) < 16 else -0.2), torch.tensor(1e-3)

    monkeypatch.setattr("trainenv.run.hypergradient", measured)


def warmed(lr: float, **branching: Any) -> Steered:
    """A run that warms up for 40 steps, steered."""
    settings = {"triggers": ["warmup"], "verify_steps": 3, "replayable": False} | branching
    return steered(toy(lr=lr, schedule={"warmup": 40}, branching=settings), planner=Promising())


def test_a_rate_that_is_too_high_is_halved_in_the_warm_up() -> None:
    found = warmed(lr=20.0)
    (decision,) = found.decisions
    assert (decision["why"], decision["at"], decision["accepted"]) == ("warmup", 20, 1)
    assert (decision["planner"]["name"], decision["verification"]["rule"]) == ("range-test", "better")
    assert decision["verification"]["verify_steps"] == 12  # four times as long as usual
    assert len(decision["branches"]) == 2
    assert found.run.lr_scale == pytest.approx(0.5 * 20 / 40)
    assert decision["branches"][1]["delta"] < 0


def test_a_rate_that_is_right_is_left_alone() -> None:
    found = warmed(lr=2e-2)
    (decision,) = found.decisions
    assert (decision["why"], decision["accepted"]) == ("warmup", None)
    assert "it is not better by" in decision["branches"][1]["reason"]
    assert found.run.lr_scale == 1.0


def test_it_is_asked_once_and_planners_are_not() -> None:
    found = warmed(lr=2e-2, triggers=["warmup", "checkpoint"], every=24)
    assert [decision["why"] for decision in found.decisions][:2] == ["warmup", "checkpoint"]
    assert [decision["why"] for decision in found.decisions].count("warmup") == 1
    assert found.responder.planner.problems  # type: ignore[attr-defined]
    assert found.decisions[1]["verification"]["rule"] == "agreement"


def test_it_can_be_switched_off() -> None:
    assert warmed(lr=20.0, triggers=[]).decisions == []


def test_what_it_may_throw_away_is_stated() -> None:
    found = warmed(lr=20.0, share=0.01)
    assert found.decisions == []
    assert found.of("skipped")[0]["detail"]["reason"].startswith("no budget is left")


def test_a_warm_up_of_a_tiny_model_is_decided_and_replayed(tmp_path: Path) -> None:
    branching = {"triggers": ["warmup"], "verify_steps": 2, "share": 0.5, "insure": False}
    config = RunConfig.load("tiny", SMALL | {"steps": 60, "schedule.warmup": 40, "optimizer.lr": 0.5, "branching": branching})
    run = TrainingRun.from_config(config)
    drive(run, RunFolder.create(tmp_path / "run", config), responder=Branching(planner=Promising()))
    replay = Replay.of(tmp_path / "run", "20")
    assert replay.agrees
    assert replay.accepted == (1, 1)
