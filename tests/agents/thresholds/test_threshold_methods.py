"""Every method finds the optimum of a known landscape, at an equal budget that it cannot exceed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from trainenv.agents import thresholds
from trainenv.agents.thresholds import METHODS, Axis, ThresholdSpace, Trial, TuningProblem, tune
from trainenv.types import UserError

SPACE = ThresholdSpace(
    axes=(
        Axis(name="fallback", low=0.05, high=0.95),
        Axis(name="rollback", low=1.0, high=16.0, log=True),
    )
)
OPTIMUM = {"fallback": 0.6, "rollback": 3.0}
BUDGET = 400
SIDE = math.isqrt(BUDGET)


def hill(values: Mapping[str, float]) -> dict[str, float]:
    """A speed-up of 2 at the optimum, falling with the squared distance in the unit cube."""
    distance = np.linalg.norm(SPACE.point(values) - SPACE.point(OPTIMUM))
    return {"score": 2.0 - 4.0 * float(distance) ** 2, "speed": 1.0}


def broken(values: Mapping[str, float]) -> dict[str, float]:
    """The same hill, of which a third is not a number and an edge is infinite."""
    if math.fmod(1000 * values["fallback"], 3) < 1:
        return {"score": math.nan}
    if values["rollback"] > 15:
        return {"score": math.inf}
    return hill(values)


@pytest.mark.parametrize("name", METHODS)
def test_the_optimum_is_found_within_the_tolerance_of_the_grid(name: str) -> None:
    problem = TuningProblem(hill, SPACE, budget=BUDGET)
    found = tune(thresholds.make(name), problem)
    away = np.abs(np.array(found.best.point) - SPACE.point(OPTIMUM))
    assert away.max() <= 1 / (SIDE - 1)
    assert found.best.score == max(trial.score for trial in found.trials)
    assert found.best.details == {"speed": 1.0}


@pytest.mark.parametrize("name", METHODS)
def test_exactly_the_budget_is_spent(name: str) -> None:
    calls = []

    def counted(values: Mapping[str, float]) -> Mapping[str, float]:
        calls.append(values)
        return hill(values)

    problem = TuningProblem(counted, SPACE, budget=25)
    tune(thresholds.make(name), problem)
    assert len(calls) == len(problem.trials) == 25
    with pytest.raises(UserError, match="raise the budget"):
        problem.score([0.5, 0.5])


@pytest.mark.parametrize("name", METHODS)
def test_scores_that_are_not_finite_are_survived_and_never_win(name: str) -> None:
    found = tune(thresholds.make(name), TuningProblem(broken, SPACE, budget=64))
    assert len(found.trials) == 64
    assert any(math.isnan(trial.score) for trial in found.trials)
    assert 1.5 < found.best.score <= 2.0


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_search_resumes_with_the_same_trials(name: str) -> None:
    whole = tune(thresholds.make(name, seed=3), TuningProblem(hill, SPACE, budget=40))
    log: list[Trial] = []
    first = TuningProblem(hill, SPACE, budget=40, record=log.append, stop=lambda: len(log) >= 21)
    tune(thresholds.make(name, seed=3), first)
    assert len(log) == 21
    again = TuningProblem(hill, SPACE, budget=40, known=tuple(log), record=log.append)
    resumed = tune(thresholds.make(name, seed=3), again)
    assert resumed.trials == whole.trials == tuple(log)


def test_trials_of_another_search_are_refused() -> None:
    done = tune(thresholds.make("random", seed=1), TuningProblem(hill, SPACE, budget=4)).trials
    problem = TuningProblem(hill, SPACE, budget=8, known=done)
    with pytest.raises(UserError, match="the same method and seed"):
        tune(thresholds.make("random", seed=2), problem)


def test_without_a_finite_score_there_is_no_result() -> None:
    problem = TuningProblem(lambda _: {"score": math.nan}, SPACE, budget=9)
    with pytest.raises(UserError, match="check the measure"):
        tune(thresholds.make("grid"), problem)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("ucb", {"noise": 0.0}),
        ("cma-es", {"spread": -1.0}),
        ("ppo", {"clip": 1.0}),
        ("ppo", {"steps": ()}),
        ("tpe", {"startup": 0}),
        ("grid", {"size": 3}),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        thresholds.make(name, **wrong)


def test_settings_and_points_are_the_same_thing() -> None:
    space = ThresholdSpace(
        axes=(*SPACE.axes, Axis(name="draft_tokens", low=1, high=16, whole=True))
    )
    for point in space.lattice(100):
        values = space.values(point)
        assert space.values(space.point(values)) == pytest.approx(values)
        assert values["draft_tokens"] == int(values["draft_tokens"])
    assert space.values([0, 0, 0]) == {"fallback": 0.05, "rollback": 1.0, "draft_tokens": 1.0}
    assert space.values([1, 1, 1]) == {"fallback": 0.95, "rollback": 16.0, "draft_tokens": 16.0}
    assert len(space.lattice(100)) == 64
