"""The planners' nouns: budgets, problems and plans that are none; and the criterion."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trainenv.planners import Score
from trainenv.planners.support.sequences import NOTHING
from trainenv.planners.testing import START, ToyWorld
from trainenv.types import (
    Budget,
    Candidate,
    Cost,
    Intervention,
    Outcome,
    Plan,
    PlanningProblem,
    UserError,
)

LOWER = (Intervention(lr_scale=0.9),)
WORLD = ToyWorld(seed=1)


@pytest.mark.parametrize(
    "limit",
    [
        {"futures": -1},
        {"futures": 1.5},
        {"seconds": math.nan},
        {"flops": math.inf},
        {"steps": True},
    ],
)
def test_budgets_that_are_none(limit: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"the budget's {next(iter(limit))} must be a"):
        Budget(**limit)


def test_costs_add_up() -> None:
    total = Cost(futures=1, seconds=0.5, flops=2.0, steps=3) + Cost(
        futures=10, seconds=1.0, flops=20.0, steps=30
    )
    assert total == Cost(futures=11, flops=22.0, steps=33)
    assert total.seconds == 1.5


def test_masks_that_do_not_fit() -> None:
    problem = WORLD.problem()
    masks = list(WORLD.codec.masks(START))
    with pytest.raises(UserError, match=r"lengths \(4, 3, 5, 2, 2, 2\)"):
        replace(problem, masks=tuple(masks[:-1]))
    masks[3] = np.array([False, True])
    with pytest.raises(UserError, match="mask of part 3 forbids the first value"):
        replace(problem, masks=tuple(masks))
    masks[3] = np.array([False, False])
    with pytest.raises(UserError, match="mask of part 3 leaves no value at all"):
        replace(problem, masks=tuple(masks))


def test_plans_that_are_none() -> None:
    nothing, lower = (
        Candidate(interventions=NOTHING, score=0.0),
        Candidate(interventions=LOWER, score=-0.1),
    )
    plan = Plan(planner="x", candidates=(lower, nothing))
    assert plan.best is lower
    assert plan.control is nothing
    with pytest.raises(UserError, match="must rank doing nothing"):
        Plan(planner="x", candidates=(lower,))
    with pytest.raises(UserError, match="must be finite and rise"):
        Plan(planner="x", candidates=(nothing, lower))
    with pytest.raises(UserError, match="must be finite and rise"):
        Plan(planner="x", candidates=(nothing, replace(lower, score=math.nan)))


@pytest.mark.parametrize(("left", "decisions"), [(0, 1), (1, 1), (50, 1), (51, 2), (400, 8)])
def test_decisions_left(left: int, decisions: int) -> None:
    problem: PlanningProblem = WORLD.problem()
    assert (
        replace(problem, history=replace(problem.history, lrs_ahead=[1e-3] * left)).decisions_left
        == decisions
    )


# ── criteria ────────────────────────────────────────────────────────────────────────────────────────────────────────


def measured(score: Score, outcome: Outcome, control: Outcome) -> float:
    return score.measured(outcome, control)


def test_each_measure_is_of_its_own_loss() -> None:
    control = Outcome(looks=(0, 50), validation=(3.0, 2.8), annealed=2.5, final=2.0)
    better = Outcome(
        looks=(0, 50), validation=(3.0, 2.8 * 0.9), annealed=2.5 * 0.8, final=2.0 * 0.7
    )
    for measure, factor in (("horizon", 0.9), ("annealed", 0.8), ("final", 0.7)):
        score = Score(measure=measure)  # type: ignore[arg-type]
        assert measured(score, better, control) == pytest.approx(math.log(factor))
        assert measured(score, control, control) == 0.0
        unknown = Outcome(looks=(0,), validation=())
        assert math.isnan(measured(score, unknown, control))
        assert math.isnan(measured(score, better, unknown))
        assert math.isnan(measured(score, replace(better, error="died"), control))


def test_a_diverged_control_is_worth_getting_away_from() -> None:
    lost = Outcome(looks=(0,), validation=(3.0,), diverged=True)
    good = Outcome(looks=(0, 50), validation=(3.0, 2.9), annealed=2.7)
    best = replace(good, annealed=2.6)
    score = Score(divergence_cost=0.3)
    assert measured(score, lost, lost) == 0.3
    assert measured(score, best, lost) < measured(score, good, lost) < 0.3
    assert measured(score, good, lost) == pytest.approx(math.log(2.7 / 3.0))


def test_risk_is_priced_into_what_is_expected() -> None:
    forecast = WORLD.problem().model.forecast(WORLD.problem().history, [LOWER[0]])[0]  # type: ignore[union-attr]
    calm, risky = replace(forecast, divergence=0.0), replace(forecast, divergence=0.5)
    score = Score(divergence_cost=0.4)
    assert score.expected(calm) == forecast.annealed.mean
    assert score.expected(risky) == pytest.approx(0.5 * forecast.annealed.mean + 0.2)
    assert score.spread(calm) == pytest.approx(math.hypot(0.01 / 1.6448536, 0.001))
    assert score.spread(risky) == pytest.approx(
        math.sqrt(0.5 * score.spread(calm) ** 2 + 0.25 * (0.4 - forecast.annealed.mean) ** 2)
    )
    assert math.isnan(score.expected(replace(forecast, divergence=math.nan)))
    assert (
        score.spread(
            replace(calm, annealed=replace(calm.annealed, low=0.0, high=0.0), disagreement=0.0)
        )
        > 0
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"measure": "anneal"}, "did you mean 'annealed'"), ({"divergence_cost": 0}, "above 0")],
)
def test_criteria_that_are_none(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Score(**wrong)
