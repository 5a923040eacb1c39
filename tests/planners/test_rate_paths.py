"""Planners of paths of the learning rate: bounds, sequences, budgets, and no worse than the shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trainenv import planners
from trainenv.planners import PlanBuilder, testing
from trainenv.planners.support.rate_paths import FACTORS, LENGTHS, TURNS, sequence_of, shapes
from trainenv.planners.support.sequences import NOTHING, Legality
from trainenv.types import (
    Budget,
    Forecast,
    Intervention,
    PathValues,
    Plan,
    PlanningProblem,
    RunHistory,
)

NAMES = ("shapes", "cem")


def factors(plan: Plan) -> list[float]:
    """All factors on the rate now that the candidates of a plan reach."""
    reached = []
    for one in plan.candidates:
        reached += np.cumprod([step.lr_scale for step in one.interventions]).tolist()
    return reached


# ── paths and sequences ───────────────────────────────────────────────────────────────────────────


def test_a_sequence_has_the_changes_of_its_path_and_ends_with_the_last() -> None:
    path = np.log([1.0, 1.2, 1.2, 0.6, 0.6])
    found = sequence_of(path)
    assert [one.lr_scale for one in found] == pytest.approx([1.0, 1.2, 1.0, 0.5])
    assert np.cumprod([one.lr_scale for one in found]) == pytest.approx(np.exp(path[:4]))
    assert sequence_of(np.zeros(5)) == NOTHING
    assert sequence_of(np.full(5, 1e-6)) == NOTHING


@pytest.mark.parametrize("decisions", [1, 2, 5, 30])
def test_shapes_are_jumps_and_ramps_to_each_level(decisions: int) -> None:
    paths = shapes(decisions, FACTORS, LENGTHS)
    assert paths.shape[1] == decisions
    assert len(np.unique(paths, axis=0)) == len(paths) <= len(FACTORS) * len(LENGTHS) + len(TURNS)
    straight = paths[(np.diff(np.abs(paths), axis=1) >= -1e-12).all(axis=1)]
    assert set(np.log(FACTORS).round(9)) <= set(straight[:, -1].round(9))
    first = {round(math.exp(path[0]), 9) for path in paths}
    assert set(FACTORS) <= first  # the jumps
    if decisions == 30:
        assert round(2.0 ** (1 / 30), 9) in first
        assert len(paths) == 40 + len(TURNS)
        turned = [path for path in paths if path[0] < 0 < path[-1]]
        assert len(turned) == 8  # to two levels below, at two times, then to two above


# ── bounds ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bounds", [(0.5, 2.0), (1.0, 4.0), (0.1, 1.0), (1.0, 1.0), (0.9, 1.1)])
def test_plans_keep_to_the_bounds_of_the_rate(name: str, bounds: tuple[float, float]) -> None:
    problem, model, _ = testing.watched(testing.ToyWorld(seed=3).problem(3, rate_bounds=bounds))
    plan = planners.make(name).plan(problem)
    low, high = bounds
    assert all(low * (1 - 1e-9) <= one <= high * (1 + 1e-9) for one in factors(plan))
    assert not testing.watched(problem)[1].calls
    for sequence in model.asked:
        reached = np.cumprod([one.lr_scale for one in sequence])
        assert (reached <= high * (1 + 1e-9)).all()
        assert (reached >= low * (1 - 1e-9)).all()
    assert model.futures == 0
    assert plan.cost.paths == model.paths
    assert (model.paths > 0) == (low < 0.85 or high > 1.2 or (name == "cem" and low < high))
    if bounds == (0.5, 2.0):
        assert len(plan.candidates) > 5


def test_bounds_allow_changes_of_any_size_and_the_way_back() -> None:
    problem = testing.ToyWorld().problem(rate_bounds=(0.5, 2.0))
    legality = Legality(problem)

    def objection(*scales: float) -> str:
        return legality.objection(tuple(Intervention(lr_scale=scale) for scale in scales))

    assert objection(1.937) == ""
    assert objection(1.5, 1.3) == ""
    assert "a factor of 2.1" in objection(1.5, 1.4)
    assert "outside 0.5 to 2" in objection(0.7, 0.7)
    assert objection(0.7, 1.9, 1.4) == ""
    assert "outside" in objection(2.5, 0.5)
    assert legality.objection((Intervention(lr_scale=1.937, clip="arc"),)) != ""
    outside = Legality(replace(problem, rate_bounds=(0.5, 0.8)))
    assert outside.objection((Intervention(lr_scale=0.9),)) == ""  # back towards them
    without = Legality(replace(problem, rate_bounds=None))
    assert without.objection((Intervention(lr_scale=1.937),)) != ""


# ── values ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(6))
def test_the_best_path_is_near_the_best_of_all(name: str, seed: int) -> None:
    world = testing.ToyWorld(seed=seed)
    plan = planners.make(name).plan(world.problem(seed))
    best = world.hidden[0]
    least = -0.4 * best**2  # at the optimum from now on
    wary = 0.001 * (not plan.best.does_nothing)
    assert plan.best.score == pytest.approx(world.delta(plan.best.interventions) + wary, abs=1e-6)
    slack = {"shapes": 0.01, "cem": 0.004}[name]
    assert plan.best.score <= min(0.0, least + slack)


@pytest.mark.parametrize("seed", range(12))
def test_the_cross_entropy_method_is_never_worse_than_the_shapes(seed: int) -> None:
    world = testing.ToyWorld(seed=seed)
    score = {name: planners.make(name).plan(world.problem(seed)).best.score for name in NAMES}
    assert score["cem"] <= score["shapes"]


def test_the_cross_entropy_method_finds_what_no_shape_is() -> None:
    gains = []
    for seed in range(12):
        world = testing.ToyWorld(seed=seed)
        score = {name: planners.make(name).plan(world.problem(seed)).best.score for name in NAMES}
        gains.append(score["shapes"] - score["cem"])
    assert sum(gain > 1e-4 for gain in gains) >= 6


def test_caution_prices_the_disagreement() -> None:
    world = testing.ToyWorld(seed=1)
    calm = planners.make("shapes", caution=0.0).plan(world.problem(1))
    wary = planners.make("shapes", caution=10.0).plan(world.problem(1))
    assert wary.best.score == pytest.approx(calm.best.score + 0.01)
    assert planners.make("shapes", caution=1e4).plan(world.problem(1)).best.does_nothing


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("futures", [0, 1, 7, 80])
def test_a_path_is_a_future_of_the_budget(name: str, futures: int) -> None:
    problem, model, _ = testing.watched(
        testing.ToyWorld(seed=1).problem(1, budget=Budget(futures=futures))
    )
    plan = planners.make(name).plan(problem)
    assert plan.cost.paths == model.paths <= futures
    assert model.paths == min(futures, {"shapes": 40 + len(TURNS), "cem": futures}[name])
    assert plan.complete == (name == "shapes" and futures == 80)
    assert all(math.isfinite(one.score) for one in plan.candidates)


def test_no_more_paths_than_are_kept() -> None:
    plan = planners.make("shapes", kept=3).plan(testing.ToyWorld().problem())
    assert len(plan.candidates) == 4
    scores = [one.score for one in plan.candidates if not one.does_nothing]
    every = planners.make("shapes", kept=99).plan(testing.ToyWorld().problem())
    assert scores == [one.score for one in every.candidates if not one.does_nothing][:3]


# ── faults ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Wrong:
    """A model whose values of paths are no values."""

    model: Any
    kind: str

    def forecast(
        self, history: RunHistory, interventions: Sequence[Intervention | Sequence[Intervention]], /
    ) -> list[Forecast]:
        raise AssertionError("expected paths to be valued")

    initial_inference = recurrent_inference = forecast

    def path_values(self, history: RunHistory, paths: NDArray[np.float64], /) -> Any:
        found: PathValues = self.model.path_values(history, paths)
        if self.kind == "raises":
            raise RuntimeError("it broke")
        if self.kind == "scalar":
            return replace(found, change=np.array(-1.0), disagreement=np.array(0.0))
        if self.kind == "nan":
            return replace(found, change=found.change * math.nan)
        if self.kind == "infinite":
            return replace(found, disagreement=found.disagreement + math.inf)
        return replace(found, change=np.where(np.arange(len(paths)) % 2, found.change, math.nan))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["raises", "scalar", "nan", "infinite", "some"])
def test_a_model_that_fails_is_named_in_a_plan(name: str, kind: str) -> None:
    problem = testing.ToyWorld(seed=1).problem(1)
    plan = planners.make(name).plan(replace(problem, model=Wrong(problem.model, kind)))
    assert plan.faults[0].startswith("the model failed: ")
    assert not plan.complete
    assert (len(plan.candidates) > 1) == (kind == "some")


@dataclass(frozen=True)
class ForecastsAlone:
    """A model that values no paths."""

    model: Any

    def forecast(
        self, history: RunHistory, interventions: Sequence[Intervention | Sequence[Intervention]], /
    ) -> list[Forecast]:
        found: list[Forecast] = self.model.forecast(history, interventions)
        return found

    initial_inference = recurrent_inference = forecast


class Unable(ForecastsAlone):
    """A model that says that it values no paths."""

    values_paths = False

    def path_values(self, history: RunHistory, paths: NDArray[np.float64], /) -> PathValues:
        raise AssertionError("expected forecasts to be asked for")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [ForecastsAlone, Unable])
def test_a_model_without_paths_forecasts_their_sequences(name: str, kind: Any) -> None:
    world = testing.ToyWorld(seed=1)
    problem: PlanningProblem = world.problem(1, budget=Budget(futures=300))
    plan = planners.make(name).plan(replace(problem, model=kind(problem.model)))
    assert plan.cost.paths == 0
    assert plan.cost.futures > 30
    assert plan.best.score < 0
    assert plan.complete


def test_paths_that_no_mask_and_no_bound_allow_cost_nothing() -> None:
    problem, model, _ = testing.watched(testing.ToyWorld().problem(rate_bounds=None))
    plan = planners.make("cem").plan(problem)
    assert PlanBuilder(problem, "check").legality.objection(plan.best.interventions) == ""
    assert model.paths < 40  # the shapes of the action space alone
    assert not testing.contract.illegal(problem, model.asked)
