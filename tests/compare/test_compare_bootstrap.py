"""Intervals: they cover, keep pairs together, take whole scenarios, and weigh scenarios alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.compare.bootstrap import Figure, figure, weights


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_draws_weigh_one_and_take_whole_scenarios(counts: list[int]) -> None:
    drawn = weights(tuple(counts), 200, 3)
    assert drawn.shape == (200, sum(counts))
    assert drawn.sum(axis=1) == pytest.approx(1)
    scenario = np.repeat(np.arange(len(counts)), counts)
    of_scenarios = np.stack(
        [drawn[:, scenario == place].sum(axis=1) for place in range(len(counts))], axis=1
    ) * len(counts)
    assert of_scenarios == pytest.approx(
        np.round(of_scenarios)
    )  # a scenario is drawn a whole number of times
    assert not weights(tuple(counts)).flags.writeable


def test_a_scenario_that_is_drawn_twice_draws_its_seeds_twice() -> None:
    drawn = weights((2,), 4000, 0)
    assert np.unique(drawn.round(9), axis=0).tolist() == [[0, 1], [0.5, 0.5], [1, 0]]
    several = weights((2, 2), 4000, 0)
    twice = several[several[:, :2].sum(axis=1) > 0.99]
    assert {round(float(value), 9) for value in twice[:, 0]} == {0, 0.25, 0.5, 0.75, 1}


def test_the_value_weighs_scenarios_alike() -> None:
    found = figure([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"])
    assert found.value == pytest.approx(3)
    assert (found.pairs, found.scenarios) == (4, 2)
    assert found.low == pytest.approx(1)
    assert found.high == pytest.approx(5)


def test_the_order_of_runs_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    values, scenarios = rng.normal(size=12), [f"t{place % 4}" for place in range(12)]
    order = rng.permutation(12)
    one = figure(values, scenarios)
    # Within a scenario runs are drawn by place, so an order of theirs is another set of draws of the same distribution.
    by_scenario = sorted(range(12), key=lambda place: scenarios[place])
    assert figure(values[by_scenario], [scenarios[place] for place in by_scenario]) == one
    assert figure(values[order], [scenarios[place] for place in order]).value == pytest.approx(
        one.value
    )


def test_pairs_are_kept() -> None:
    """Runs that differ by far more than the methods do: a difference taken run by run does not see it."""
    rng = np.random.default_rng(1)
    scenarios = [f"t{place // 5}" for place in range(40)]
    level = 10 * rng.normal(size=40)
    one, other = level + 0.01 * rng.normal(size=40), level + 0.02
    paired = figure(one - other, scenarios)
    assert paired.high - paired.low < 0.02
    assert paired.low < paired.value < paired.high < 0
    apart = figure(one, scenarios)
    assert apart.high - apart.low > 1


@pytest.mark.parametrize(
    ("scenarios", "seeds", "between", "within"),
    [(12, 5, 1.0, 1.0), (12, 3, 0.3, 1.0), (20, 2, 1.0, 0.2)],
)
def test_intervals_cover(scenarios: int, seeds: int, between: float, within: float) -> None:
    rng = np.random.default_rng(2)
    names = [f"t{place:02d}" for place in range(scenarios) for _ in range(seeds)]
    covered = 0
    for _ in range(400):
        values = between * np.repeat(rng.normal(size=scenarios), seeds) + within * rng.normal(
            size=scenarios * seeds
        )
        found = figure(values, names)
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / 400 <= 0.985


def test_runs_of_a_scenario_are_no_independent_witnesses() -> None:
    """Three scenarios of a hundred alike runs say no more than three runs."""
    names = [f"t{place // 100}" for place in range(300)]
    found = figure(np.repeat([0.0, 1.0, 2.0], 100), names)
    assert (found.low, found.high) == pytest.approx((0, 2))


def test_a_ratio_is_of_the_sums() -> None:
    found = figure([(1.0, 10.0), (3.0, 10.0)], ["a", "b"], lambda means: means[:, 0] / means[:, 1])
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.1, 0.3))


def test_nothing_and_a_single_run() -> None:
    assert math.isnan(figure([], []).value)
    assert figure([math.nan], ["a"]).pairs == 0
    lone = figure([3.0, math.nan, math.inf], ["a", "b", "a"])
    assert (lone.value, lone.pairs, lone.scenarios) == (3.0, 1, 1)
    assert math.isnan(lone.low)
    assert math.isnan(lone.high)
    seeds = figure([1.0, 2.0, 3.0], ["a", "a", "a"])
    assert seeds.low < 2 < seeds.high
    assert Figure().to_json()["pairs"] == 0
