"""Forecasts for budgets and widths outside those of the data count as less sure."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from trainenv.models.spec import USUAL_RATE
from trainenv.worldmodel.features import STATE
from trainenv.worldmodel.paths.inputs import PathState, start_state
from trainenv.worldmodel.paths.model import extrapolation


def state(budget: int, width: float) -> PathState:
    """Return the start of a run of some steps and some width; NaN for an unknown one."""
    return PathState(
        features=start_state(budget),
        level=math.nan,
        schedule=np.full(30, 1e-3),
        now=0.0,
        peak=math.log(1e-3),
        usual=math.log(USUAL_RATE / width),
    )


@pytest.mark.parametrize("width", [16, 64, math.nan])
@pytest.mark.parametrize("budget", [200, 500, 1000])
def test_nothing_is_added_where_the_data_are_many(budget: int, width: float) -> None:
    assert extrapolation(state(budget, width)) == pytest.approx(0, abs=1e-9)


def test_budgets_of_few_groups_add_a_part_of_what_unknown_ones_do() -> None:
    assert extrapolation(state(2000, 64)) == pytest.approx(0.012 * math.log(2), rel=0.02)
    assert extrapolation(state(6000, 64)) == pytest.approx(0.012 * math.log(6), rel=0.02)


def test_what_is_added_grows_with_the_distance() -> None:
    few = extrapolation(state(6000, 64))
    assert extrapolation(state(1000, 128)) == pytest.approx(0.03 * math.log(2))
    assert extrapolation(state(1000, 256)) == pytest.approx(0.03 * math.log(4))
    assert extrapolation(state(24_000, 64)) == pytest.approx(few + 0.03 * math.log(4), rel=0.02)
    both = extrapolation(state(24_000, 128))
    assert both == pytest.approx(extrapolation(state(24_000, 64)) + 0.03 * math.log(2))


def test_a_state_without_a_measured_budget_is_taken_as_known() -> None:
    unknown = state(1000, 64)
    features = unknown.features.copy()
    features[STATE.index("decision")] = math.nan
    assert extrapolation(replace(unknown, features=features)) == 0
