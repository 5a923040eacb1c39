"""The branching agent on an environment: wrapped or not, with a budget smaller or greater than the configuration's."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import trainenv  # noqa: F401  (registers the environments)
from tests.support.steered_runs import QUICK, SMALL, Dreamer, Promising
from trainenv.agents.branching import BranchingAgent, PlanningOptions
from trainenv.config.schema import BranchingConfig
from trainenv.objectives import NextToken
from trainenv.records.decision_files import read_decisions
from trainenv.records.telemetry_log import read_telemetry
from trainenv.report.run.run_report import RunReport
from trainenv.types import UserError
from trainenv.wrappers import SpeculativeVerification


def made(**more: Any) -> gym.Env[Any, Any]:
    return gym.make(
        "trainenv/GPT2-Tiny-v0", overrides={**SMALL, "steps": 60, "branching": QUICK, **more}
    )


@pytest.mark.parametrize("total", [None, 40, 90])
def test_it_trains_until_the_budget_is_spent(total: int | None, tmp_path: Path) -> None:
    env: Any = made()
    report = BranchingAgent(env, planner=Promising(), model=Dreamer()).run(
        total, out=tmp_path / "run"
    )
    run, budget = env.unwrapped.run, total or 60
    assert isinstance(report, RunReport)
    assert report.folder == tmp_path / "run"
    assert report.summary["ended"] == "budget spent"
    assert "decision 1" in report.tree()
    flops = report.summary["flops"]
    looks = flops["evaluate"] / run.flops_per_step
    assert run.step == run.horizon.end == report.summary["step"] < budget
    assert (flops["main"] + flops["verify"] + flops["rewound"]) / run.flops_per_step <= budget
    assert sum(flops.values()) / run.flops_per_step <= budget + looks


@pytest.mark.parametrize("total", [30, 90])
def test_the_share_is_of_the_budget_that_was_given(total: int, tmp_path: Path) -> None:
    env: Any = made()
    agent = BranchingAgent(env, planner=Promising())
    agent.run(total, out=tmp_path / "run")
    purse = agent.callback.state_dict()["purse"]
    assert purse["allowed"] == pytest.approx(0.5 * total * env.unwrapped.run.flops_per_step)
    assert purse["wasted"] <= purse["allowed"]


def test_drafts_are_verified_as_the_wrapper_says(tmp_path: Path) -> None:
    env = SpeculativeVerification(made(), top_k=2, verify_steps=3, rule="risk", worth=0.095)
    agent = BranchingAgent(
        env,
        planner=Promising(),
        config=BranchingConfig(**(QUICK | {"top_k": 6, "verify_steps": 9})),
    )
    agent.run(out=tmp_path / "run")
    decisions = read_decisions(tmp_path / "run")
    assert decisions
    for decision in decisions:
        assert decision["verification"]["rule"] == "risk"
        assert (
            decision["verification"]["verify_steps"] <= 4
        )  # about three: a few less or more by how drafts fare
        assert [branch["score"] for branch in decision["branches"][1:]] == [
            -0.1
        ]  # the only one that promises so much
    bare = BranchingAgent(made(), planner=Promising())
    bare.run(out=tmp_path / "bare")
    assert {decision["verification"]["rule"] for decision in read_decisions(tmp_path / "bare")} == {
        "agreement"
    }


def test_it_goes_on_with_a_run_that_was_stopped(tmp_path: Path) -> None:
    env: Any = made()
    agent = BranchingAgent(env, planner=Promising(), planning=PlanningOptions())
    seen: list[int] = []
    stopped = agent.run(
        out=tmp_path / "run",
        watch=lambda run, window: seen.append(run.step),
        stop=lambda: seen[-1] >= 20,
    )
    assert "interrupted" in stopped.summary["ended"]
    assert env.unwrapped.run.step == seen[-1] < 60
    wasted = agent.callback.state_dict()["purse"]["wasted"]
    agent.run(out=tmp_path / "more")
    assert agent.callback.state_dict()["purse"]["wasted"] >= wasted > 0
    assert [decision["number"] for decision in read_decisions(tmp_path / "more")][:1] != [1]


def test_what_cannot_be_trained_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected an environment of a training run, found"):
        BranchingAgent(gym.make("CartPole-v1"), planner=Promising())
    env: Any = made()
    env.reset(seed=0)
    env.unwrapped.run.advance(10)
    for total in (10, 0, -5):
        with pytest.raises(
            UserError,
            match=f"a budget of more steps than the 10 taken, found {total}; give a greater one",
        ):
            BranchingAgent(env, planner=Promising()).run(total, out=tmp_path / "run")
    assert env.unwrapped.run.horizon.end == 60
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("here")
    with pytest.raises(UserError, match="not empty"):
        BranchingAgent(env, planner=Promising()).run(40, out=tmp_path / "run")


def test_a_run_that_was_stepped_before_is_steered_from_there(tmp_path: Path) -> None:
    env: Any = made()
    env.reset(seed=0)
    env.step([0, 0, 0, 0, 0, 0])
    began = env.unwrapped.run.step
    report = BranchingAgent(env, planner=Promising(), model=Dreamer()).run(60, out=tmp_path / "run")
    assert (report.summary["ended"], began > 0) == ("budget spent", True)
    assert "decision 1" in report.tree()
    assert report.html().is_file()
    assert read_telemetry(tmp_path / "run")["step"].min() == began + 1


class Generating(NextToken):
    """A loss that holds a generator, which can be neither copied nor saved."""

    def __init__(self) -> None:
        self.numbers = (number for number in range(9))


def test_a_run_that_cannot_be_forked_is_trained_and_not_decided_on(tmp_path: Path) -> None:
    env: Any = made()
    env.reset(seed=0)
    env.unwrapped.run.objective = Generating()
    report = BranchingAgent(env, planner=Promising(), model=Dreamer()).run(60, out=tmp_path / "run")
    assert (report.summary["ended"], report.summary["step"]) == ("budget spent", 60)
    (fault,) = report.summary["faults"]
    assert fault["step"] == 0
    assert "objective.numbers is a generator" in fault["reason"]
    assert report.tree(300).count("cannot be forked") == 1


def test_a_model_that_cannot_be_copied_is_decided_on(tmp_path: Path) -> None:
    env: Any = made()
    env.reset(seed=0)
    env.unwrapped.run.model.lock = threading.Lock()
    report = BranchingAgent(env, planner=Promising(), model=Dreamer()).run(60, out=tmp_path / "run")
    assert (report.summary["ended"], report.summary["faults"]) == ("budget spent", [])
    assert "decision 1" in report.tree()
