"""A planner with real branches, for whole runs: what it finds becomes the run, and everything that it tried is paid for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.bigram import tokens
from trainenv import Intervention, Telemetry, TrainingConfig, TrainingRun, UserError, planners
from trainenv.agents import PlannerCallback, population
from trainenv.loop import Callback, resume, train
from trainenv.records.run_folder import RunFolder, read_events, read_validation
from trainenv.records.telemetry_log import read_telemetry
from trainenv.types import Candidate, Cost, Plan, PlanningProblem

HALF, DOUBLE = Intervention(lr_scale=0.5), Intervention(lr_scale=2.0)


def toy(steps: int = 100, lr: float = 1e-2, **more: Any) -> TrainingRun:
    """A run of a few thousand steps a second; an evaluation costs a third of a step."""
    torch.manual_seed(0)
    model = nn.Embedding(8, 8)
    usual = {
        "steps": steps,
        "clip": {"policy": "none"},
        "schedule": {"warmup": 0},
        "validation": {"every": 0},
        "monitor": {"block": 5, "probe_every": 0},
        "checkpoints": {"every": 20, "moments": "exact", "keep_last": 50},
        "interventions": {"lr_scales": (1.0, 0.5, 2.0)},
    }
    config = TrainingConfig(**usual | more)
    return TrainingRun(
        model,
        torch.optim.AdamW(model.parameters(), lr=lr),
        tokens,
        config,
        validation=[tokens(10**6)],
    )


@dataclass(frozen=True)
class Tries:
    """Runs some sequences for real where the budget allows all, and ranks first the one that it was told to."""

    sequences: Sequence[tuple[Intervention, ...]]
    best: int
    steps: int
    asked: list[PlanningProblem] = field(default_factory=list)

    def plan(self, problem: PlanningProblem, /) -> Plan:
        assert problem.executor is not None
        self.asked.append(problem)
        listed = [(Intervention(),), *self.sequences]
        assert problem.budget.flops is not None
        if (
            problem.executor.cost(listed, self.steps, measure="horizon").flops
            > problem.budget.flops
        ):
            return Plan(
                planner="tries",
                candidates=(Candidate(interventions=listed[0], score=0.0),),
                complete=False,
            )
        outcomes = problem.executor.run(listed, self.steps, measure="horizon")
        order = sorted(range(len(listed)), key=lambda place: place != self.best)
        candidates = [
            Candidate(interventions=listed[p], score=0.0, outcomes=(outcomes[p],)) for p in order
        ]
        return Plan(
            planner="tries",
            candidates=tuple(candidates),
            cost=Cost(steps=sum(one.steps for one in outcomes)),
        )


def drives(path: Path, callback: Callback | None, run: TrainingRun, **more: Any) -> dict[str, Any]:
    return train(run, RunFolder.create(path, run.config), callback=callback, **more)


# ── the best becomes the run ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_run_goes_on_from_what_the_best_has_come_to(best: int, tmp_path: Path) -> None:
    """Its steps are not trained again, and stand on record with what was done."""
    sequences = [(HALF, DOUBLE), (DOUBLE,)]
    expected = toy()
    expected.advance(10)
    for one in ([], [HALF, DOUBLE], [DOUBLE, Intervention()])[best] or [Intervention()] * 2:
        expected.apply(one)
        expected.advance(4)
    seen: list[list[Tensor]] = []

    def watch(run: TrainingRun, window: Sequence[Telemetry]) -> None:
        if run.step == 18:
            seen.append([p.detach().clone() for p in run.model.parameters()])

    summary = drives(
        tmp_path / "run",
        PlannerCallback(planner=Tries(sequences, best, 8), decision_steps=4, start=10),
        toy(),
        watch=watch,
    )
    assert len(seen) == 1
    assert all(torch.equal(a, b) for a, b in zip(seen[0], expected.model.parameters()))
    events = [
        (e["step"], e["detail"])
        for e in read_events(tmp_path / "run")
        if e["kind"] == "intervention"
    ]
    assert (
        events
        == [[], [(10, {"lr_scale": 0.5}), (14, {"lr_scale": 2.0})], [(10, {"lr_scale": 2.0})]][best]
    )
    rows = read_telemetry(tmp_path / "run")
    assert list(rows["step"]) == list(range(1, summary["step"] + 1))
    assert list(rows["lr_scale"])[9:14] == [1.0] + [[1.0, 0.5, 2.0][best]] * 4


def test_what_was_lost_is_begun_again(tmp_path: Path) -> None:
    """The best candidate has diverged when it was tried, as everything else has: it is done, and the run goes its way."""
    run = toy(validation={"every": 0}, environment={"divergence_loss": 1e-3})
    drives(
        tmp_path / "run",
        PlannerCallback(planner=Tries([(HALF,)], 1, 4), decision_steps=4, start=10),
        run,
    )
    assert run.applied == ((10, HALF),)
    assert len(read_telemetry(tmp_path / "run")) == run.step


def test_it_plans_when_it_is_time(tmp_path: Path) -> None:
    tries = Tries([(HALF,)], 0, 4)
    drives(
        tmp_path / "run",
        PlannerCallback(planner=tries, decision_steps=4, start=20, every=15, share=1.0),
        toy(),
    )
    starts = [problem.history.telemetry[-1].step for problem in tries.asked]
    assert starts[0] == 20
    # Blocks end at multiples of 5 and where a branch has ended that was gone on with.
    assert all(15 <= later - earlier < 20 for earlier, later in pairwise(starts))
    once = Tries([(HALF,)], 0, 4)
    drives(tmp_path / "once", PlannerCallback(planner=once, decision_steps=4, start=20), toy())
    assert len(once.asked) == 1


def test_a_planner_that_raises_is_no_surprise(tmp_path: Path) -> None:
    class Blind:
        def plan(self, problem: PlanningProblem, /) -> Plan:
            raise UserError("needs a model")

    with pytest.raises(UserError, match="model"):
        drives(tmp_path / "run", PlannerCallback(planner=Blind(), decision_steps=4), toy())


# ── what it costs ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
def test_all_that_it_tries_is_paid_for(seed: int, tmp_path: Path) -> None:
    """Whatever is tried and when, all costs together what the run does alone, to a step."""
    draw = np.random.default_rng(seed)
    count, steps, start = (int(draw.integers(low, high)) for low, high in ((1, 5), (1, 9), (0, 30)))
    every, short = (None if draw.random() < 0.5 else int(draw.integers(40, 60)) for _ in range(2))
    sequences = [(Intervention(lr_scale=scale),) for scale in (0.5, 2.0, 0.25, 4.0)[:count]]
    planner, run = Tries(sequences, int(draw.integers(count + 1)), steps), toy(200)
    planned = PlannerCallback(
        planner=planner, decision_steps=4, start=start, every=every, first=(0.25, 4.0), short=short
    )
    summary = drives(tmp_path / "run", planned, run)
    looked = len(read_validation(tmp_path / "run")) * run.flops_per_evaluation
    spent = (sum(summary["flops"].values()) - looked) / run.flops_per_step
    assert 199 - 1e-6 < spent < 200 + 1e-6
    assert summary["flops"]["main"] == pytest.approx(run.step * run.flops_per_step)
    assert read_telemetry(tmp_path / "run")["progress"].iloc[-1] > 0.8


def test_a_plan_may_cost_its_share(tmp_path: Path) -> None:
    tries, run = Tries([(HALF,)], 0, 4), toy()
    drives(
        tmp_path / "run",
        PlannerCallback(planner=tries, decision_steps=4, start=20, share=0.25),
        run,
    )
    assert tries.asked[0].budget.flops == pytest.approx(0.25 * 80 * run.flops_per_step)
    assert tries.asked[0].budget.futures is None


# ── what is legal ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_decision_reaches_farther_than_those_after_it(tmp_path: Path) -> None:
    tries = Tries([(Intervention(lr_scale=0.02),)], 0, 4)
    run = toy(interventions={"lr_scales": (1.0, 0.5, 2.0), "lr_bounds": (0.015, 3.0)})
    drives(
        tmp_path / "run",
        PlannerCallback(planner=tries, decision_steps=4, first=(0.02, 10.0), proposes=True),
        run,
    )
    (problem,) = tries.asked
    assert problem.codec.sizes[0] == 5
    assert [bool(legal) for legal in problem.masks[0]] == [
        True,
        True,
        True,
        True,
        False,
    ]  # ten times is out of bounds
    assert problem.masks_after is not None
    after = problem.masks_after([Intervention(lr_scale=0.02)])
    assert [bool(legal) for legal in after[0]] == [True, False, True, False, False]
    assert [bool(legal) for legal in problem.masks_after([DOUBLE])[0]] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert [one[0].lr_scale for one in problem.proposals] == [0.02, 10.0]


def test_later_decisions_know_the_clip_policy_of_earlier_ones(tmp_path: Path) -> None:
    tries = Tries([], 0, 4)
    drives(tmp_path / "run", PlannerCallback(planner=tries, decision_steps=4), toy())
    masks_after = tries.asked[0].masks_after
    assert masks_after is not None
    assert not masks_after([Intervention(clip="arc"), Intervention()])[2][3]
    assert masks_after([Intervention(clip="arc"), Intervention(clip="zclip")])[2][3]


# ── the published ones ──────────────────────────────────────────────────────────────────────────────────────────────


def test_autolrs_finds_a_rate_that_is_far_too_low(tmp_path: Path) -> None:
    """A hundred times too low: it goes up as far as it can at each stage, and ends better than the run left alone."""
    alone = drives(tmp_path / "alone", None, toy(200, lr=1e-4))
    planner = planners.make("autolrs", stage=10, tries=5, share=0.1)
    callback = PlannerCallback(
        planner=planner, decision_steps=4, every=40, first=(0.1, 10.0), start=5
    )
    summary = drives(tmp_path / "run", callback, toy(200, lr=1e-4))
    found = [
        e["detail"]["lr_scale"]
        for e in read_events(tmp_path / "run")
        if e["kind"] == "intervention"
    ]
    assert found[0] == 10.0
    assert summary["final_validation_loss"] < alone["final_validation_loss"] - 0.01
    assert 0.1 < summary["flops"]["verify"] / sum(summary["flops"].values()) < 0.6


@pytest.mark.parametrize("explore", ["perturb", "pb2"])
@pytest.mark.parametrize("lr", [1e-4, 0.3])
def test_a_population_shares_the_budget(explore: str, lr: float, tmp_path: Path) -> None:
    """All members are forks of one moment; the winner has as much of the budget as it had at first, and the rest of it."""
    run, planner = (
        toy(400, lr=lr),
        planners.make("pbt", population=4, generations=5, explore=explore),
    )
    callback = population(
        run,
        planner,
        members=4,
        generations=5,
        criterion=planners.Score(measure="horizon"),
        first=(0.1, 3.0),
    )
    interval = callback.decision_steps
    summary = drives(tmp_path / "run", callback, run)
    assert 5 * 4 * interval <= 400 <= 1.15 * (21 * interval + 5)
    spent = (
        sum(summary["flops"].values())
        - len(read_validation(tmp_path / "run")) * run.flops_per_evaluation
    )
    assert 399 * run.flops_per_step <= spent <= 400 * run.flops_per_step * (1 + 1e-9)
    assert 5 + 4 * interval < summary["step"] < 200
    done = [
        (e["step"], e["detail"])
        for e in read_events(tmp_path / "run")
        if e["kind"] == "intervention"
    ]
    if lr == 1e-4:  # the winner began with the higher rate
        assert done[0] == (5, {"lr_scale": 3.0})


# ── a kill, and mistakes ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("killed_at", [40])
def test_it_goes_on_to_the_same_end_after_a_kill(killed_at: int, tmp_path: Path) -> None:
    def made() -> PlannerCallback:
        planner = planners.make("autolrs", stage=5, tries=4, share=0.2)
        return PlannerCallback(
            planner=planner, decision_steps=4, every=20, start=10, first=(0.2, 3.0)
        )

    straight = toy(150)
    drives(tmp_path / "whole", made(), straight)
    run, again = toy(150), toy(150)
    drives(tmp_path / "run", made(), run, stop=lambda: run.step >= killed_at)
    callback = made()
    folder, _ = resume(tmp_path / "run", again, callback)
    train(again, folder, callback=callback)
    assert again.fingerprint() == straight.fingerprint()
    assert again.ledger.as_dict() == pytest.approx(straight.ledger.as_dict())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decision_steps", 0),
        ("start", -1),
        ("every", 0),
        ("short", 0),
        ("share", 0.0),
        ("share", 1.5),
        ("share", math.nan),
    ],
)
def test_bad_hyperparameters(name: str, value: float) -> None:
    usual: dict[str, Any] = {"planner": Tries([], 0, 4), "decision_steps": 4}
    with pytest.raises(UserError, match=name):
        PlannerCallback(**usual | {name: value})
