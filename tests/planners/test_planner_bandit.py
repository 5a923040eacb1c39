"""The bandits: posteriors, who is pulled, who survives, and what the best of many forecasts is worth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainenv.planners.bandit import Bandit, _Arm, _bayes_ucb, _thompson, shrunk
from trainenv.planners.testing import ToyWorld, watched
from trainenv.types import Budget, Intervention

ARMS = [(Intervention(lr_scale=scale),) for scale in (0.8, 0.9, 1.1)]


@given(
    mean=st.floats(-1, 1),
    spread=st.floats(0.01, 1),
    noise=st.floats(0.01, 1),
    scores=st.lists(st.floats(-1, 1), min_size=1, max_size=6),
)
def test_the_posterior_is_that_of_normals(
    mean: float, spread: float, noise: float, scores: list[float]
) -> None:
    arm = _Arm(ARMS[0], mean, spread**2)
    for score in scores:
        arm.update(score, noise)
    precision = 1 / spread**2 + len(scores) / noise**2
    assert arm.variance == pytest.approx(1 / precision)
    assert arm.mean == pytest.approx(
        (mean / spread**2 + sum(scores) / noise**2) / precision, abs=1e-9
    )
    assert arm.pulls == len(scores)


def test_thompson_pulls_an_arm_as_often_as_it_may_be_best() -> None:
    rng = np.random.default_rng(0)
    arms = [_Arm(ARMS[0], 0.0, 1.0), _Arm(ARMS[1], 1.0, 1.0)]
    first = np.mean([_thompson(arms, 1, rng)[0] is arms[0] for _ in range(4000)])
    best = 0.5 * math.erfc(-(1.0 / math.sqrt(2)) / math.sqrt(2))  # P(N(0,1) < N(1,1))
    assert first == pytest.approx(best, abs=0.02)


def test_ucb_goes_for_the_promising_then_for_the_uncertain() -> None:
    known, unknown = _Arm(ARMS[0], 0.0, 0.01**2), _Arm(ARMS[1], 0.1, 0.1**2)
    assert _bayes_ucb([known, unknown], 1, 1) == [known]  # the quantile 1/2: the means alone
    assert _bayes_ucb([known, unknown], 1, 20) == [unknown]


def test_the_best_of_many_forecasts_is_believed_less_than_it_says() -> None:
    """Truths N(0, 1) and forecasts with errors N(0, 1): the best of 128 promises twice what it holds, unless it is shrunk."""
    rng = np.random.default_rng(1)
    promised, believed, held, covered = [], [], [], []
    for _ in range(400):
        truth = rng.standard_normal(128)
        forecast = truth + rng.standard_normal(128)
        means, variances = shrunk(forecast, np.ones(128), least=0.01)
        best = int(np.argmin(means))
        promised.append(forecast[best])
        believed.append(means[best])
        held.append(truth[best])
        covered.append(abs(truth[best] - means[best]) < 1.645 * math.sqrt(variances[best]))
    assert np.mean(promised) < 1.8 * np.mean(held)
    assert np.mean(believed) == pytest.approx(np.mean(held), rel=0.06)
    assert np.mean(covered) == pytest.approx(0.9, abs=0.04)


def test_few_candidates_are_believed_as_they_are() -> None:
    means, variances = shrunk(np.array([0.1, -0.1]), np.array([0.2, 0.3]), least=0.01)
    assert means.tolist() == [0.1, -0.1]
    assert variances == pytest.approx([0.04, 0.09])


def test_halving_runs_half_as_many_twice_as_long() -> None:
    problem, _, executor = watched(ToyWorld(seed=1).problem(1))
    plan = Bandit(method="halving", arms=8, steps=25).plan(problem)
    assert executor.executor.calls == [(9, 25, 0), (5, 50, 0), (3, 100, 0), (2, 200, 0)]  # type: ignore[attr-defined]
    runs = [len(one.outcomes) for one in plan.candidates if one.outcomes and not one.does_nothing]
    assert runs == sorted(runs, reverse=True) == [4, 3, 2, 2, 1, 1, 1, 1]
    assert not any(one.outcomes for one in plan.candidates[9:])


def test_halving_takes_as_many_arms_as_can_be_paid_to_the_end() -> None:
    problem, _, executor = watched(ToyWorld(seed=1).problem(1, budget=Budget(steps=1500)))
    plan = Bandit(method="halving", arms=16, steps=25).plan(problem)
    counts = [count for count, _, _ in executor.executor.calls]  # type: ignore[attr-defined]
    assert counts[-1] == 2
    assert 4 <= counts[0] < 17
    assert plan.cost.steps == executor.steps <= 1500


@pytest.mark.parametrize("method", ["thompson", "ucb"])
def test_pulls_of_an_arm_take_one_draw_after_the_other(method: str) -> None:
    problem, _, executor = watched(ToyWorld(seed=2, noise=0.01).problem(2))
    plan = Bandit(method=method, arms=4, pulls=20, batch=2).plan(problem)  # type: ignore[arg-type]
    draws: dict[tuple[Intervention, ...], int] = {}
    for one in plan.candidates:
        if not one.does_nothing:
            draws[one.interventions] = len(one.outcomes)
    assert sum(draws.values()) == 20
    assert sum(count > 0 for count in draws.values()) <= 4
    most = max(draws.values())
    assert len(plan.control.outcomes) == most
    assert {draw for _, _, draw in executor.executor.calls} == set(range(most))  # type: ignore[attr-defined]


def test_real_pulls_overrule_a_model_that_is_wrong() -> None:
    """The model has the sign of everything wrong; enough pulls find what is good in truth."""
    world = ToyWorld(seed=3, unsafe=None)
    problem = world.problem(3)

    class Wrong:
        def forecast(self, history, interventions, /):  # type: ignore[no-untyped-def]
            found = problem.model.forecast(history, interventions)  # type: ignore[union-attr]
            return [
                replace(f, annealed=replace(f.annealed, mean=-f.annealed.mean, low=-1.0, high=1.0))
                for f in found
            ]

    wrong = replace(problem, model=Wrong())  # type: ignore[arg-type]
    trusting = Bandit(arms=80, pulls=1).plan(wrong).best
    checking = (
        Bandit(arms=80, pulls=160, batch=8)
        .plan(replace(wrong, generator=np.random.default_rng(3)))
        .best
    )
    assert world.delta(checking.interventions) < -0.01
    assert world.delta(checking.interventions) < world.delta(trusting.interventions)


def test_without_a_model_arms_are_an_even_choice() -> None:
    problem, _, executor = watched(ToyWorld(seed=1).problem(1))
    plan = Bandit(arms=6, pulls=12).plan(replace(problem, model=None))
    assert executor.steps == plan.cost.steps > 0
    assert plan.cost.futures == 0
    assert 2 <= len(plan.candidates) <= 7
