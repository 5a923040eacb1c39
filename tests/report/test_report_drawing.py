"""Parts that draw the report: scales, thinning, words, intervals, calibration, tree and decisions."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.made_folders import decision
from trainenv.report.drawing import formatting
from trainenv.report.drawing.downsampling import bucketed, cloud, smoothed
from trainenv.report.drawing.intervals import WIDTH, Interval, interval_row, scale_of
from trainenv.report.drawing.panels import decimals
from trainenv.report.drawing.svg import Scale, dots, element, polyline, spread
from trainenv.report.run.branch_losses import rollouts
from trainenv.report.run.calibration_panel import calibration, pairs, wilson
from trainenv.report.run.decision_card import decision_card
from trainenv.report.run.tree_panel import NARROWEST, fan

numbers = st.floats(-1e6, 1e6)


@given(numbers, st.floats(1e-6, 1e6), st.integers(1, 12))
def test_ticks_are_round_inside_and_about_as_many(low: float, span: float, count: int) -> None:
    scale = Scale(low, low + span, 0, 100)
    ticks = scale.ticks(count)
    assert all(
        low - 1e-6 * span - 1e-9 <= tick <= low + span + 1e-6 * span + 1e-9 for tick in ticks
    )
    assert len(ticks) <= 1.5 * count + 1
    if count >= 2:
        assert ticks


@given(st.floats(1e-5, 1e5), st.integers(2, 8))
def test_ticks_are_told_apart_by_their_decimals(span: float, count: int) -> None:
    ticks = Scale(0.0, span, 0, 1).ticks(count)
    written = [formatting.number(tick, decimals(ticks)) for tick in ticks]
    assert len(set(written)) == len(written)


def test_a_scale_of_one_value_draws_it_in_the_middle() -> None:
    assert Scale(2.0, 2.0, 0, 10)(2.0) == 5.0
    assert Scale(0.0, 1.0, 0, 10).inside(7.0) == 10.0


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
def test_a_range_is_finite_and_holds_what_is(values: list[float]) -> None:
    values = [v for v in values if not math.isfinite(v) or abs(v) < 1e100]
    low, high = spread(values)
    assert math.isfinite(low)
    assert low < high
    assert all(low <= v <= high for v in values if math.isfinite(v))


def test_markup_is_escaped_and_closed() -> None:
    assert element("a", class_="x", data_y='"<&') == '<a class="x" data-y="&quot;&lt;&amp;"></a>'
    assert element("circle", cx=1.26, r=2.0) == '<circle cx="1.3" r="2"/>'


def test_lines_break_where_there_is_nothing() -> None:
    d = re.search(r'd="([^"]*)"', polyline([(0, 0), (1, 1), (2, math.nan), (3, 3), (4, 4)], "x"))
    assert d is not None
    assert d[1] == "M0 0L1 1M3 3L4 4"
    assert polyline([], "x") == dots([(math.inf, 0)], "x") == ""


@given(st.integers(1, 400), st.integers(3, 60))
def test_buckets_keep_both_ends_the_count_and_the_mean(length: int, count: int) -> None:
    x = np.arange(length, dtype=np.float64)
    y = np.sin(x)
    thin_x, thin_y = bucketed(x, y, count)
    assert len(thin_x) == min(length, count)
    assert (thin_x[0], thin_x[-1], thin_y[0], thin_y[-1]) == (x[0], x[-1], y[0], y[-1])
    assert np.all(np.diff(thin_x) >= 0)
    assert thin_y.min() >= y.min() - 1e-12
    constant = bucketed(x, np.full(length, 7.0), count)[1]
    assert np.allclose(constant, 7.0)


@given(
    st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), min_size=1, max_size=300), st.integers(1, 40)
)
def test_a_thinned_cloud_is_a_part_of_it_in_order(values: list[float], count: int) -> None:
    y = np.array(values)
    x = np.arange(len(y), dtype=np.float64)
    thin_x, thin_y = cloud(x, y, count)
    assert len(thin_x) <= 2 * count + 2
    assert np.all(np.diff(thin_x) > 0)
    assert np.array_equal(y[thin_x.astype(int)], thin_y)
    if np.isfinite(y).sum() <= count:
        assert len(thin_x) == np.isfinite(y).sum()


@given(st.integers(0, 9999), st.integers(20, 400))
def test_a_spike_of_one_step_is_never_thinned_away(place: int, count: int) -> None:
    y = np.random.default_rng(0).standard_normal(10_000)
    y[place] = 100.0
    thin = cloud(np.arange(10_000.0), y, count)[1]
    assert thin.max() == 100.0
    assert 0.9 * count <= len(thin) <= 2 * count + 2


def test_smoothing_keeps_constants_and_never_rises_before_its_cause() -> None:
    constant = pd.Series([3.0, math.nan, 3.0, math.inf, 3.0])
    assert np.allclose(smoothed(constant).to_numpy(), 3.0)
    step = pd.Series(np.where(np.arange(400) < 200, 2.0, 5.0))
    line = smoothed(step).to_numpy()
    assert np.all(line[:200] == pytest.approx(2.0))
    assert line[200] > 2.3
    assert line[260] == pytest.approx(5.0, abs=0.01)


@given(st.integers(1, 399), st.integers(5, 120))
def test_a_thinned_line_rises_only_after_its_cause(cause: int, count: int) -> None:
    x = np.arange(400, dtype=np.float64)
    y = np.where(x < cause, 2.0, 5.0)
    thin_x, thin_y = bucketed(x, y, count)
    assert np.all(thin_y[thin_x < cause] == 2.0)
    assert thin_y.max() == 5.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([], "no intervention"),
        ([{}], "no intervention"),
        ([{"lr_scale": 1.0}], "no intervention"),
        ([{"lr_scale": 0.8, "clip": "zclip"}], "LR ×0.8, ZClip"),
        ([{"lr_scale": 0.8}, {}, {}], "LR ×0.8"),
        ([{"lr_scale": 0.9}, {"lr_scale": 0.9}], "LR ×0.9 (2 times)"),
        ([{}, {"momentum_reset": True}], "no intervention, then reset momentum"),
        (
            [{"weight_decay_scale": 2, "skip_batch": True, "data_reorder": True}],
            "weight decay ×2, skip flagged data, shuffle data",
        ),
    ],
)
def test_interventions_in_words(fields: list[dict[str, object]], said: str) -> None:
    assert formatting.sequence(fields) == said


def test_numbers_in_words() -> None:
    assert formatting.change(math.log(0.99)) == "−1.00 %"
    assert formatting.change(1e-9) == "0.00 %"
    assert formatting.change(None) == formatting.change(math.nan) == "–"
    assert formatting.change(1e9).endswith("%")
    assert formatting.interval(-0.01, 0.01) == "−1.00 to +1.01 %"
    assert (
        formatting.share(0),
        formatting.share(0.00021),
        formatting.share(0.8),
        formatting.share(1e-7),
    ) == (
        "0 %",
        "0.021 %",
        "80 %",
        "< 0.001 %",
    )
    assert (formatting.flops(4.9e11), formatting.flops(12), formatting.flops(None)) == (
        "490 GFLOP",
        "12 FLOP",
        "–",
    )
    assert (formatting.counted(1, "branch", "branches"), formatting.counted(0, "alarm")) == (
        "1 branch",
        "no alarms",
    )
    assert (formatting.duration(0.0041), formatting.duration(60), formatting.duration(600)) == (
        "4.1 ms",
        "60 s",
        "10 min",
    )


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=8))
def test_rows_of_intervals_stay_in_their_cell(rows: list[tuple[float, float, float]]) -> None:
    made = [Interval(low=min(a, b), middle=(a + b) / 2, high=max(a, b), dot=c) for a, b, c in rows]
    scale = scale_of(made)
    assert scale.low <= 0 <= scale.high
    for row in made:
        drawn = interval_row(row, scale)
        assert all(
            -1 <= float(x) <= WIDTH + 1 for x in re.findall(r' (?:cx|x1|x2|x)="([-\d.]+)"', drawn)
        )
        assert ("outside" in drawn) == (not row.low <= row.dot <= row.high)  # type: ignore[operator]


def test_wilson_against_known_values() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(10, 10)[1] == 1.0


def test_calibration_counts_what_was_drafted_and_measured() -> None:
    made = decision(2, 100, 100, np.random.default_rng(0))
    found = pairs([made])
    assert len(found) == 5  # of seven: the control, and the one that failed, say nothing
    made["branches"][1]["delta"] = made["branches"][1]["expected"]["high"] + 1e-6
    held = sum(pair.held for pair in pairs([made]))
    assert f"{held} of 5" in calibration([made])
    assert "No branch has both" in calibration([])


def test_paired_rollouts_of_like_branches_lie_on_zero() -> None:
    made = decision(1, 100, 100, np.random.default_rng(0))
    for branch in made["branches"]:
        branch["losses"] = made["branches"][0]["losses"]
    heights = set(re.findall(r'class="tip \w+"', rollouts(made)))
    assert heights
    ends = set(re.findall(r'cy="([\d.]+)"', rollouts(made)))
    assert len(ends) == 1
    made["branches"][0]["losses"] = []
    assert rollouts(made) == ""


def test_a_card_survives_whatever_is_missing() -> None:
    made = decision(1, 100, 120, np.random.default_rng(0))
    bare = {"number": 1, "step": 100, "branches": [{}, {"place": 1}]}
    assert "continued unchanged" in decision_card(bare, opened=True)
    assert 'open="open"' in decision_card(bare, opened=True)
    card = decision_card(made, opened=False)
    assert "the run was rolled back to step 100" in card
    assert 'open="open"' not in card
    for key in list(made):
        if key not in ("number", "step", "branches"):
            assert decision_card({**made, key: None}, opened=False)


def test_a_fan_leads_down_where_it_is_better_and_becomes_a_mark_where_it_is_narrow() -> None:
    made = decision(2, 100, 100, np.random.default_rng(0))
    made["branches"] = [
        {"place": 0, "control": True, "fate": "control", "delta": 0.0},
        {"place": 1, "fate": "passed", "delta": -0.01},
        {"place": 2, "fate": "rejected", "delta": 0.01},
        {"place": 3, "fate": "failed", "delta": None},
    ]
    drawn = fan(made, 50.0, 100.0, 40.0, 30.0, 0.01)
    better, worse = (float(y) for y in re.findall(r'cy="([\d.]+)" r="1.9"', drawn))
    assert better > 100 > worse
    assert better - 100 == pytest.approx(100 - worse, abs=0.11)
    assert "cross" in drawn
    assert "<path" not in fan(made, 50.0, 100.0, NARROWEST - 1, 30.0, 0.01)
