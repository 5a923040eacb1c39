"""On the synthetic environment, whose optimum is known, every planner's regret falls with its budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.support.synthetic_worlds import RATES, Synthetic
from trainenv import planners
from trainenv.planners import Score
from trainenv.types import Budget, Plan

SEEDS = range(6)
Hyper = dict[str, Any]


@cache
def world(seed: int, rates: bool = False) -> Synthetic:
    return Synthetic(seed=seed, decisions=10, **({"interventions": RATES} if rates else {}))


def mean_regret(
    name: str, budget: Budget, hyper: Hyper, *, error: float = 0.0, seeds: range = SEEDS
) -> float:
    """Mean over worlds of what the best candidate loses against the optimum of the whole run, ln loss."""
    regrets = []
    for seed in seeds:
        here = world(seed)
        here.error = error
        plan = planners.make(name, **hyper).plan(
            here.problem(seed, criterion=Score(measure="final"), budget=budget)
        )
        regrets.append(here.regret(plan.best.interventions))
    assert min(regrets) > -1e-9  # nothing is better than the optimum
    return float(np.mean(regrets))


# By futures that an exact model may look at.
LOOKERS: list[tuple[str, Hyper]] = [
    ("grid", {}),
    ("random", {}),
    ("bayes", {"startup": 5, "candidates": 24}),
    ("mcts", {"simulations": 60}),
]


@pytest.mark.parametrize(("name", "hyper"), LOOKERS)
def test_regret_falls_with_futures(name: str, hyper: Hyper) -> None:
    none, few, many = (mean_regret(name, Budget(futures=futures), hyper) for futures in (1, 8, 200))
    nothing = float(np.mean([world(seed).regret(()) for seed in SEEDS]))
    assert none == pytest.approx(nothing)
    assert few < none - 0.002
    assert many < few - 0.002
    assert many < 0.65 * nothing


# By real steps; the model of the bandits is wrong by about as much as candidates differ.
RUNNERS: list[tuple[str, Callable[[int], Hyper], float]] = [
    ("bandit", lambda steps: {"method": "thompson"}, 0.05),
    ("bandit", lambda steps: {"method": "ucb"}, 0.05),
    ("bandit", lambda steps: {"method": "halving"}, 0.05),
    ("pbt", lambda steps: {"population": max(2, steps // 1600)}, 0.0),
    ("pbt", lambda steps: {"population": max(2, steps // 1600), "explore": "pb2"}, 0.0),
]


@pytest.mark.parametrize(("name", "hyper", "error"), RUNNERS)
def test_regret_falls_with_real_steps(
    name: str, hyper: Callable[[int], Hyper], error: float
) -> None:
    none, few, many = (
        mean_regret(name, Budget(futures=None, steps=n), hyper(n), error=error, seeds=range(12))
        for n in (0, 4500, 20_000)
    )
    assert few < none - 0.0005
    assert many < few - 0.0005
    assert many < 0.8 * none


def test_autolrs_falls_by_its_own_measure() -> None:
    """It minimises the loss at τ, so that is where its regret falls; at the end of the run it need not.

    Each rate is tried for the whole stage, so that regret is that of the search and not of the extrapolation.
    """

    def after(plan: Plan, here: Synthetic) -> float:
        return here.played(plan.best.interventions, here.left)[-1]

    regrets: dict[int, float] = {}
    for steps in (0, 900, 4000):
        found = []
        for seed in SEEDS:
            here = world(seed, rates=True)
            planner = planners.make("autolrs", share=1.0)
            plan = planner.plan(here.problem(seed, budget=Budget(steps=steps)))
            codec = here.env.codec
            rates = [(codec.decode([value, 0, 0, 0, 0, 0]),) for value in range(codec.sizes[0])]
            best = min(here.played(rate, here.left)[-1] for rate in rates)
            found.append(math.log(after(plan, here) / best))
        regrets[steps] = float(np.mean(found))
    assert regrets[900] < regrets[0] - 0.002
    assert regrets[4000] < regrets[900] - 0.002


def test_sequences_beat_single_interventions() -> None:
    """With enough looks, two decisions come closer to the optimum than one."""
    one = mean_regret("grid", Budget(futures=None), {"candidates": 72}, seeds=range(4))
    two = mean_regret(
        "random", Budget(futures=None), {"decisions": 2, "candidates": 120}, seeds=range(4)
    )
    assert two < one - 0.002


def test_the_default_criterion_does_not_reward_cutting_for_its_own_sake() -> None:
    """Where the learning rate is too low, the loss N steps ahead still says to cut it; the annealed-equivalent loss does not."""
    cuts: dict[str, list[float]] = {"horizon": [], "annealed": []}
    regrets: dict[str, list[float]] = {"horizon": [], "annealed": []}
    for seed in SEEDS:
        here = world(seed)
        here.error = 0.0
        for measure, found in cuts.items():
            problem = here.problem(seed, criterion=Score(measure=measure))  # type: ignore[arg-type]
            best = planners.make("grid").plan(problem).best
            found.append(best.interventions[0].lr_scale)
            regrets[measure].append(here.regret(best.interventions))
    assert np.mean(cuts["horizon"]) < np.mean(cuts["annealed"]) - 0.03
    assert np.mean(regrets["annealed"]) < np.mean(regrets["horizon"]) - 0.002
