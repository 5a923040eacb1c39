"""Cost of the loop: a steered run never spends more than one that is left alone, nor more than stated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.bigram import tokens
from tests.support.lengths import either
from tests.support.own_runs import run_of
from tests.support.steered_runs import (
    QUICK,
    SMALL,
    Dreamer,
    Promising,
    Pupil,
    Steered,
    refused,
    ruin,
    steered,
    toy,
)
from trainenv.agents.branching import Branching
from trainenv.agents.waste_budget import WasteBudget
from trainenv.config.schema import RunConfig
from trainenv.loop import train
from trainenv.records.run_folder import RunFolder
from trainenv.run import TrainingRun

OFTEN = settings(
    deadline=None,
    max_examples=either(short=4, long=16),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


pytestmark = pytest.mark.usefixtures("alarms")


# ── budgets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def left_alone(run: TrainingRun, tmp_path_factory: pytest.TempPathFactory) -> float:
    """FLOPs that doing nothing spends."""
    folder = RunFolder.create(tmp_path_factory.mktemp("alone") / "run", run.config)
    return float(sum(train(run, folder)["flops"].values()))


def within_its_budget(found: Steered, nothing: float, share: float) -> None:
    """All of what doing nothing may spend, hardly more; and thrown away no more than the share."""
    flops = found.summary["flops"]
    assert found.total <= 1.01 * nothing
    purse = found.callback.state_dict()["purse"]
    assert purse["wasted"] <= purse["allowed"] * (1 + 1e-9) + 1e-6
    assert purse["allowed"] == pytest.approx(
        share * found.run.config.steps * found.run.flops_per_step, rel=1e-6
    )
    assert flops["verify"] + flops["rewound"] <= purse["wasted"] * (1 + 1e-9)
    assert 0 <= purse["owed"] < found.run.flops_ahead
    cost_estimate = Branching(planner=Promising()).cost_estimate(found.run)
    assert purse["wasted"] <= (cost_estimate.steps + 1) * found.run.flops_per_step


@OFTEN
@given(
    max_waste=st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6, 0.9]),
    verify_steps=st.integers(1, 20),
    top_k=st.integers(1, 6),
    every=st.integers(1, 50),
    refractory_steps=st.integers(0, 30),
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
    found = steered(
        toy(branching=asked, **more), planner=planner, model=Dreamer(flops_per_future=300.0)
    )
    within_its_budget(found, nothing, asked["max_waste"])


@settings(
    deadline=None,
    max_examples=either(short=1, long=4),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 3),
    max_waste=st.sampled_from([0.05, 0.3, 0.8]),
    verify_steps=st.integers(2, 12),
    top_k=st.integers(1, 6),
    every=st.integers(5, 30),
    refractory_steps=st.integers(0, 20),
)
def test_nor_does_a_language_model(
    tmp_path_factory: pytest.TempPathFactory, seed: int, **asked: Any
) -> None:
    config = RunConfig.load("tiny", {**SMALL, "seed": seed, "branching": QUICK | asked})
    nothing = left_alone(TrainingRun.from_config(config), tmp_path_factory)
    found = steered(TrainingRun.from_config(config), planner=Promising())
    within_its_budget(found, nothing, asked["max_waste"])


def test_a_learner_is_paid_for_by_the_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    class Costly(Pupil):
        def learn(self, rollouts: Any, /) -> None:
            super().learn(rollouts)
            self.flops += 30_000.0

    nothing = left_alone(toy(), tmp_path_factory)
    found = steered(toy(), planner=Promising(), model=Costly())
    assert found.summary["flops"]["model"] > 60_000
    assert found.total <= 1.01 * nothing


def test_a_run_that_is_lost_again_and_again_spends_no_more_either(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    nothing, run = left_alone(toy(), tmp_path_factory), toy(branching={"rewind": 1})
    objective: Any = run.objective

    def wild(model: Any, micro: Any, /) -> Any:
        if run.step >= 60:
            ruin(model)
        return objective(model, micro)

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
def test_the_widest_is_the_widest_that_is_left(
    allowed: float, spent: list[float], most: int, price: float
) -> None:
    run, purse = toy(10**6), WasteBudget(allowed)
    for flops in spent:
        purse.throw_away(flops)
    width = purse.widest(run, most, lambda k: k * price)
    assert purse.left_in(run) == purse.left  # the run has more than may be wasted
    assert 0 <= width <= most
    assert width * price <= purse.left or width == 0
    assert width == most or (width + 1) * price > purse.left
    assert WasteBudget(**purse.state_dict()) == purse


def test_trials_leave_half_for_harm_until_late_in_the_run() -> None:
    run, purse = toy(100), WasteBudget(1000.0)
    purse.throw_away(400.0)  # for harm
    purse.throw_away(499.0, trial=True)
    assert purse.has_for_trials(run)
    purse.throw_away(1.0, trial=True)
    assert not purse.has_for_trials(run)
    run.advance(80)
    assert purse.has_for_trials(run)
    assert WasteBudget(allowed=9.0, wasted=1.0, owed=0.0).has_for_trials(
        toy()
    )  # as older checkpoints have it


def test_drafting_is_within_what_was_stated() -> None:
    """A model that costs as much as the run: most of what may be thrown away would go into drafts."""
    for futures in (37, 10**6):  # as was asked, and more than that
        found = steered(
            toy(branching={"max_waste": 0.2}),
            planner=Promising(futures=futures),
            model=Dreamer(flops_per_future=900.0),
        )
        stated = (
            Branching(planner=Promising()).cost_estimate(found.run).steps * found.run.flops_per_step
        )
        flops = found.summary["flops"]
        purse = found.callback.state_dict()["purse"]
        assert flops["plan"] > 0
        assert purse["wasted"] >= flops["plan"] + flops["verify"] + flops["rewound"]
        assert futures > 100 or purse["wasted"] <= stated + found.run.flops_per_step


def test_a_planner_is_told_how_many_futures_it_can_afford() -> None:
    planner = Promising(futures=1)
    steered(
        toy(branching={"max_waste": 0.2}), planner=planner, model=Dreamer(flops_per_future=900.0)
    )
    counts = [problem.budget.futures or 0 for problem in planner.problems]
    assert counts
    assert max(counts) < 128
    assert min(counts) >= 8


def test_the_statement_says_what_can_be_afforded() -> None:
    rich = Branching(planner=Promising()).cost_estimate(toy(2000))
    assert rich.affords.startswith(
        f"that is enough for about {int(rich.steps / rich.decision)} decisions"
    )
    poor = Branching(planner=Promising()).cost_estimate(toy(branching={"max_waste": 0.01}))
    assert poor.affords.startswith("that is too little for a trial, which may cost")
    asked = float(poor.affords.partition("set branching.max_waste to ")[2].split()[0])
    assert "or lower validation.sequences (" in poor.affords
    enough = Branching(planner=Promising()).cost_estimate(toy(branching={"max_waste": asked}))
    assert enough.affords.startswith("that is enough for about 2 decisions")


@given(flops=st.lists(st.floats(0, 3e4), max_size=20))
def test_what_is_owed_is_taken_off_in_whole_steps(flops: list[float]) -> None:
    run, purse = toy(10_000), WasteBudget(1e9)
    for some in flops:
        purse.owe(run, some)
    assert 0 <= purse.owed < run.flops_ahead
    assert (10_000 - run.horizon.end) * run.flops_ahead + purse.owed == pytest.approx(
        sum(flops), abs=1e-3
    )


def test_the_statement_holds_of_memory_and_disk(tmp_path: Path) -> None:
    config = RunConfig.load(
        "tiny", {**SMALL, "branching": QUICK | {"replayable": True, "max_waste": 0.9}}
    )
    run, callback = TrainingRun.from_config(config), Branching(planner=Promising())
    cost_estimate = callback.cost_estimate(run)
    found = steered(run, callback)
    assert len(found.decisions) >= 3
    saved = [path.stat().st_size for path in found.path.glob("branches/*/*.ptz")]
    assert len(saved) == len(found.decisions)
    assert sum(saved) <= cost_estimate.disk
    snapshots = callback._state.points.snapshots
    assert sum(one.nbytes for one in snapshots) <= cost_estimate.memory
    memory, disk = -(-cost_estimate.memory // 10**6), -(-cost_estimate.disk // 10**6)
    assert str(cost_estimate).startswith(
        f"steering costs at most 108 steps, {memory} MB of memory and {disk} MB on disk; "
    )
    assert Branching(planner=Promising()).cost_estimate(toy()).disk == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"monitor.enabled": False}, "the index and the range test are blind, as monitor.enabled"),
        ({"monitor.probe_every": 0}, "the range test is blind and harm is not seen"),
        ({"schedule.warmup": 9}, "the range test is blind, as the warm-up has 9 steps"),
    ],
)
def test_the_statement_says_where_the_monitor_is_blind(changed: Any, said: str) -> None:
    run = TrainingRun.from_config("tiny", {**SMALL, "schedule.warmup": 20, **changed})
    found = Branching(planner=Promising()).cost_estimate(run)
    assert said in str(found)
    assert bool(found.blind) is bool(said)


def test_the_statement_tells_of_missing_probes_and_unknown_attention() -> None:
    blind = Branching(planner=Promising()).cost_estimate(run_of()).blind
    assert any("the run has no probe" in one for one in blind)
    blind = Branching(planner=Promising()).cost_estimate(run_of(probe=tokens(98))).blind
    assert any("no attention, which is unknown in Sequential" in one for one in blind)
