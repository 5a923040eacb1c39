"""Conformal intervals: the quantile to the last rank, coverage by trunk, back-off of strata, equality with MAPIE."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.types import UserError
from trainenv.worldmodel.conformal import CQR, Calibration, conformal_quantile

INF = math.inf


def fitted(scores: Any, *, trunks: Any = None, **how: Any) -> Calibration:
    """A calibration whose rows lie `scores` above an interval of [0, 0]."""
    zero = np.zeros(len(scores))
    return CQR(**how).fit(
        zero, zero, scores, trunks=range(len(scores)) if trunks is None else trunks
    )


# --- the quantile


@pytest.mark.parametrize(
    ("count", "alpha", "rank"),
    [
        (9, 0.1, 9),  # the fewest that give a finite quantile: their greatest
        (8, 0.1, None),
        (10, 0.1, 10),  # ⌈9.9⌉
        (19, 0.1, 18),
        (9, 0.7, 3),  # (1 − 0.7)·10 is 3.0000000000000004
        (99, 0.05, 95),
        (1, 0.5, 1),
        (1, 0.499, None),
        (0, 0.5, None),
    ],
)
def test_the_quantile_is_the_order_statistic_of_the_paper(
    count: int, alpha: float, rank: int | None
) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert conformal_quantile(scores, alpha=alpha) == (INF if rank is None else rank)


@given(st.integers(1, 60), st.integers(1, 99))
def test_the_rank_is_right_for_every_number_of_scores_and_level(count: int, percent: int) -> None:
    rank = -(-(count + 1) * (100 - percent) // 100)  # in whole numbers
    expected = float(rank) if rank <= count else INF
    assert conformal_quantile(np.arange(1.0, count + 1), alpha=percent / 100) == expected


def test_ties_infinite_scores_and_a_level_of_zero() -> None:
    assert conformal_quantile([1, 2, 2, 2, 3], alpha=0.5) == 2
    assert conformal_quantile([-INF, -INF, 5], alpha=0.5) == -INF
    assert conformal_quantile([0, 0, INF], alpha=0.3) == INF
    assert conformal_quantile(np.zeros(1000), alpha=0.0) == INF


def test_rows_of_one_trunk_share_its_mass_and_weights_scale_it() -> None:
    # Ten trunks; one of 1000 rows with great scores counts as one of eleven, not as nearly all.
    scores, trunks = [*range(9), *[100] * 1000], [*range(9), *[9] * 1000]
    assert conformal_quantile(scores, alpha=0.2, trunks=trunks) == 8
    assert conformal_quantile(scores, alpha=0.2) == 100
    # Doubling a row by its weight is doubling it, and a row of weight 0 is not there.
    assert (
        conformal_quantile([1, 2, 3, 4], alpha=0.4, weights=[2, 1, 1, 0])
        == conformal_quantile([1, 1, 2, 3], alpha=0.4)
        == 2
    )
    assert conformal_quantile([1, 2], alpha=0.5, weights=[0, 0]) == INF


# --- coverage: the inequality behind the guarantee holds exactly, trunk against all others, for any scores


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-5, 5), min_size=1, max_size=6), min_size=2, max_size=12),
    st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.8]),
)
def test_each_trunk_left_out_in_turn_is_covered_on_average(
    groups: list[list[int]], alpha: float
) -> None:
    scores, trunks = (
        np.concatenate(groups),
        np.repeat(np.arange(len(groups)), [len(g) for g in groups]),
    )
    shares = []
    for trunk in range(len(groups)):
        out = trunks == trunk
        limit = conformal_quantile(scores[~out], alpha=alpha, trunks=trunks[~out])
        shares.append((scores[out] <= limit).mean())
    assert np.mean(shares) >= 1 - alpha - 1e-9


def rows_with_dependence(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors shared by a trunk, larger in the trunks that have few rows."""
    size = np.exp(rng.normal(0, 0.7, count))
    rows = np.maximum(1, np.rint(20 / size**2)).astype(int)
    trunks = np.repeat(np.arange(count), rows)
    return (size * rng.normal(0, 1, count))[trunks] + 0.3 * rng.normal(0, 1, len(trunks)), trunks


def test_grouping_by_trunk_covers_where_counting_rows_does_not() -> None:
    rng, by_trunk, by_row = np.random.default_rng(1), [], []
    for _ in range(400):
        errors, trunks = rows_with_dependence(rng, 12)
        new, owner = rows_with_dependence(rng, 30)
        weight = 1 / np.bincount(owner)[owner] / 30  # a random row of a random trunk
        by_trunk.append(
            weight @ (np.abs(new) <= conformal_quantile(np.abs(errors), alpha=0.1, trunks=trunks))
        )
        by_row.append(weight @ (np.abs(new) <= conformal_quantile(np.abs(errors), alpha=0.1)))
    noise = 4 * np.std(by_trunk) / math.sqrt(400)
    assert (
        0.9 - noise <= np.mean(by_trunk) <= 0.9 + 2 / 13 + noise
    )  # at most 1 − α + 2/(K + 1), rows being many
    assert np.mean(by_row) < 0.83


@pytest.mark.parametrize("sides", ["symmetric", "separate", "lower", "upper"])
@pytest.mark.parametrize("scaled", [False, True])
def test_intervals_cover_what_they_promise_and_no_more(sides: Any, scaled: bool) -> None:
    # 39 rows: the guarantee is met with equality, 36/40, by both one-sided quantiles and the joint one; the two halves sum to it.
    rng, hits = np.random.default_rng(2), []
    for _ in range(600):
        width = rng.uniform(0.5, 2, 59)
        y = rng.normal(0.3, 1, 59) * width
        calibration = CQR(sides=sides, scaled=scaled).fit(
            -width[:39], width[:39], y[:39], trunks=range(39)
        )
        lower, upper = calibration.interval(-width[39:], width[39:])
        hits.append(((lower <= y[39:]) & (y[39:] <= upper)).mean())
    noise = 4 * np.std(hits) / math.sqrt(600)
    assert abs(np.mean(hits) - 0.9) < noise < 0.02


# --- intervals


def test_golden_intervals_of_mapie() -> None:
    # MAPIE 1.6.0: ConformalizedQuantileRegressor(estimator=[low, high, mean], confidence_level=level, prefit=True), whose three
    # estimators return columns of X: .conformalize(X, y), then .predict_interval(new, symmetric_correction=symmetric)[1][:, :, 0]
    # with rng = np.random.default_rng(3); mean = rng.normal(0, 1, 25).round(2); half = rng.uniform(0.2, 1, 25).round(2);
    # y = (mean + rng.normal(0, 1, 25)).round(2); X = [mean − half, mean + half, mean]; new = [[−0.5, 0.5, 0], [1, 1.2, 1.1]]
    golden = {
        (0.9, True): [[-2.04, 2.04], [-0.54, 2.74]],
        (0.9, False): [[-2.12, 1.21], [-0.62, 1.91]],
        (0.8, True): [[-1.21, 1.21], [0.29, 1.91]],
        (0.8, False): [[-2.04, 0.94], [-0.54, 1.64]],
        (0.5, True): [[-0.8, 0.8], [0.7, 1.5]],
        (0.5, False): [[-1.01, 0.8], [0.49, 1.5]],
    }
    rng = np.random.default_rng(3)
    mean, half = rng.normal(0, 1, 25).round(2), rng.uniform(0.2, 1, 25).round(2)
    y = (mean + rng.normal(0, 1, 25)).round(2)
    for (level, symmetric), intervals in golden.items():
        how = CQR(alpha=1 - level, sides="symmetric" if symmetric else "separate")
        bounds = how.fit(mean - half, mean + half, y, trunks=range(25)).interval(
            [-0.5, 1.0], [0.5, 1.2]
        )
        np.testing.assert_allclose(np.stack(bounds, axis=1), intervals, rtol=0, atol=1e-12)


def test_equals_mapie_bit_for_bit_where_it_is_installed() -> None:
    pytest.importorskip("mapie.regression")
    from mapie.regression import ConformalizedQuantileRegressor
    from sklearn.base import BaseEstimator, RegressorMixin

    class Column(RegressorMixin, BaseEstimator):
        def __init__(self, column: int = 0) -> None:
            self.column = column

        def fit(self, X: Any, y: Any = None) -> Any:
            self.fitted_ = True
            return self

        def predict(self, X: Any) -> Any:
            return np.asarray(X)[:, self.column]

    rng = np.random.default_rng(4)
    # (n + 1)·level is never whole here. Where it is, MAPIE 1.6 may take a rank more: at 99 rows and 0.55 the 56th.
    for count in (40, 41, 60, 98):
        mean, half = rng.normal(0, 1, count), rng.uniform(1, 2, count)
        known = np.stack([mean - half, mean + half, mean], axis=1)
        y = mean + rng.normal(0, 2, count)
        new = np.stack([mean - 9, mean + 9, mean], axis=1)
        for level in (0.9, 0.85, 0.8, 0.55):
            for symmetric in (True, False):
                theirs = ConformalizedQuantileRegressor(
                    estimator=[Column(c).fit(known) for c in range(3)],
                    confidence_level=level,
                    prefit=True,
                )
                theirs.conformalize(known, y)
                expected = theirs.predict_interval(new, symmetric_correction=symmetric)[1][:, :, 0]
                how = CQR(alpha=1 - level, sides="symmetric" if symmetric else "separate")
                ours = how.fit(known[:, 0], known[:, 1], y, trunks=range(count)).interval(
                    new[:, 0], new[:, 1]
                )
                np.testing.assert_array_equal(np.stack(ours, axis=1), expected)


def test_too_few_trunks_give_the_whole_support() -> None:
    for scaled in (False, True):
        how = CQR(scaled=scaled)
        few = how.fit([0] * 40, [1] * 40, [0.5] * 40, trunks=[0, 1, 2, 3] * 10)  # 40 rows, 4 trunks
        assert [b.tolist() for b in few.interval([0, 2], [1, 2])] == [[-INF, -INF], [INF, INF]]
    few = CQR(support=(0, 1)).fit([0.1] * 4, [0.2] * 4, [0.3] * 4, trunks=range(4))
    assert [b.tolist() for b in few.interval([0.1], [0.2])] == [[0], [1]]
    np.testing.assert_allclose(
        few.interval([0.1], [0.2], alpha=0.2), [[0], [0.3]], atol=1e-12
    )  # four are enough for 80 %


def test_one_bound_leaves_the_other_open() -> None:
    lower, upper = fitted(np.arange(1.0, 20), sides="upper").interval([0], [0])
    assert (lower.tolist(), upper.tolist()) == ([-INF], [18])
    lower, upper = fitted(-np.arange(1.0, 20), sides="lower").interval([0], [0])
    assert (lower.tolist(), upper.tolist()) == ([-18], [INF])


def test_bounds_shrink_where_forecasts_are_too_wide_but_never_cross() -> None:
    calibration = CQR().fit([-10] * 19, [10] * 19, np.linspace(-1, 1, 19), trunks=range(19))
    assert [b.tolist() for b in calibration.interval([-10, 0], [10, 4])] == [
        [-1, 2],
        [1, 2],
    ]  # all but the one at the end: ±1
    assert [b.tolist() for b in calibration.interval([10], [-10])] == [[-1], [1]]  # swapped bounds


def test_a_diverged_branch_counts_as_a_miss() -> None:
    y = np.array([0.0] * 17 + [INF] * 2)
    assert fitted(y).interval([0], [0])[1].tolist() == [INF]
    assert fitted(y, alpha=0.2).interval([0], [0])[1].tolist() == [0]
    lower, upper = fitted([INF] * 99, sides="separate").interval([0], [1])
    assert (lower.tolist(), upper.tolist()) == ([INF], [INF])


# --- strata


def strata_of(path: str, trunks: range, scores: float) -> list[tuple[str, int, float]]:
    return [(path, trunk, scores) for trunk in trunks]


def test_a_stratum_with_too_few_trunks_asks_its_nearest_parent_with_enough() -> None:
    rows = [
        *strata_of("early/lr", range(12), 1.0),
        *strata_of("early/clip", range(4), 3.0),
        *[("early/clip", 3, 3.0)] * 50,  # rows, not trunks
        *strata_of("late/lr", range(20, 24), 5.0),
    ]
    paths, trunks, scores = zip(*rows)
    zero = np.zeros(len(rows))
    calibration = CQR().fit(zero, zero, scores, trunks=trunks, strata=paths)
    asked = {
        path: calibration.correction(path)
        for path in ("early/lr", "early/clip", "early/reset", "late/lr", "earl", "")
    }
    assert [(c.stratum, c.trunks) for c in asked.values()] == [
        ("early/lr", 12),
        ("early", 12),
        ("early", 12),
        *[("", 16)] * 3,
    ]
    assert asked["early/lr"].high == 1.0
    assert asked["early/clip"].high == asked["early/reset"].high == 3.0
    _, upper = calibration.interval([0, 0], [0, 0], strata=["early/lr", "late/lr"])
    assert upper.tolist() == [1.0, asked["late/lr"].high]


def test_each_stratum_is_covered_where_pooling_covers_only_on_average() -> None:
    rng = np.random.default_rng(5)
    hits: dict[tuple[str, bool], list[float]] = {}
    for _ in range(300):
        paths = ["calm"] * 19 + ["wild"] * 19
        spread = np.array([1.0] * 19 + [5.0] * 19)
        zero = np.zeros(38)
        calibration = CQR().fit(zero, zero, rng.normal(0, spread), trunks=range(38), strata=paths)
        y = rng.normal(0, spread)
        for by_stratum in (True, False):
            lower, upper = calibration.interval(zero, zero, strata=paths if by_stratum else None)
            hit = (lower <= y) & (y <= upper)
            for path in ("calm", "wild"):
                hits.setdefault((path, by_stratum), []).append(hit[np.array(paths) == path].mean())
    mean = {key: np.mean(value) for key, value in hits.items()}
    assert abs(mean["calm", True] - 0.9) < 0.02
    assert abs(mean["wild", True] - 0.9) < 0.02
    assert mean["wild", False] < 0.88
    assert mean["calm", False] > 0.98


# --- what it must not depend on, and bad input


def test_the_order_of_rows_and_the_names_of_trunks_do_not_matter() -> None:
    rng = np.random.default_rng(6)
    y, trunks = rng.normal(size=200), rng.integers(0, 30, 200)
    paths = np.where(trunks % 2 == 0, "a/b", "a/c")
    order, zero = rng.permutation(200), np.zeros(200)
    one = CQR(alpha=0.2, scaled=False).fit(zero, zero, y, trunks=trunks, strata=paths.tolist())
    names = [f"run {t}" for t in trunks[order]]
    two = CQR(alpha=0.2).fit(zero, zero, y[order], trunks=names, strata=paths[order].tolist())
    for path in ("a/b", "a/c", "a", ""):
        assert one.correction(path) == two.correction(path)


def test_state_is_json_and_gives_the_same_intervals() -> None:
    y = np.array([*np.linspace(-1, 1, 30), INF])
    trunks, paths = np.arange(31) % 17, ["a"] * 20 + ["b/c"] * 11
    one = CQR(sides="separate", scaled=True).fit(
        [0] * 31, [1] * 31, y, trunks=trunks, strata=paths, weights=[1] * 30 + [0.5]
    )
    text = json.dumps(one.state, allow_nan=False)
    two = Calibration.from_state(json.loads(text))
    assert two.how == one.how
    for alpha in (0.0, 0.1, 0.3):
        bounds = [c.interval([0, 1], [1, 3], strata=["b", "a"], alpha=alpha) for c in (one, two)]
        np.testing.assert_array_equal(*bounds)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(-1e300, 1e300)] * 2, st.floats(allow_nan=False)),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from(["symmetric", "separate", "lower", "upper"]),
    st.booleans(),
    st.floats(0, 1, exclude_max=True),
)
def test_bounds_are_never_nan_and_never_cross(
    rows: Any, sides: Any, scaled: bool, alpha: float
) -> None:
    lower, upper, y = (np.array(column) for column in zip(*rows))
    if scaled:
        upper = lower + np.abs(upper) + np.abs(lower) * 1e-3 + 1e-3
        lower, upper = np.clip(lower, -1e300, 1e300), np.clip(upper, -1e305, 1e305)
    with np.errstate(over="ignore"):
        calibration = CQR(sides=sides, scaled=scaled).fit(
            lower, upper, y, trunks=np.arange(len(y)) // 2
        )
        low, high = calibration.interval(lower, upper, alpha=alpha)
    assert not np.isnan(low).any()
    assert not np.isnan(high).any()
    assert (low <= high).all()


ROWS: dict[str, Any] = {"lower": [0, 0], "upper": [1, 1], "outcome": [0, 1], "trunks": [0, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": [0, math.nan]}, "outcome must not be NaN, found NaN in row 1"),
        ({"lower": [0, -INF]}, "lower must be finite"),
        ({"upper": [1]}, "upper must have as many rows as lower, 2, found 1"),
        ({"upper": [[1, 1]]}, "shape"),
        ({"upper": ["a", "b"]}, "upper must be numbers"),
        ({"lower": [], "upper": [], "outcome": [], "trunks": []}, "at least one"),
        ({"trunks": [0]}, "trunks must name the run of each row, 2"),
        ({"trunks": [0, math.nan]}, "trunks must not be NaN"),
        ({"strata": ["a"]}, "one path for each row"),
        ({"weights": [1, -1]}, "weights must be 2 finite numbers"),
        ({"weights": [1, INF]}, "weights must be 2 finite numbers"),
        ({"weights": [1]}, "weights must be 2 finite numbers"),
    ],
)
def test_bad_rows_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CQR().fit(**{**ROWS, **change})


@pytest.mark.parametrize(
    "how",
    [{"alpha": 0}, {"alpha": 1}, {"alpha": -0.1}, {"alpha": math.nan}, {"alpha": "0.1"}, {"sides": "both"}, {"least_trunks": 0},
     {"support": (1, 1)}, {"support": (math.nan, 1)}],
)  # fmt: skip
def test_bad_settings_are_refused(how: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"must be.*found"):
        CQR(**how)


def test_outcomes_outside_the_support_and_widths_of_zero_are_refused() -> None:
    with pytest.raises(UserError, match="support"):
        CQR(support=(0, 0.5)).fit(**ROWS)
    with pytest.raises(UserError, match="width of 0"):
        CQR(scaled=True).fit(**{**ROWS, "upper": [0, 1]})
    calibration = CQR().fit(**ROWS)
    for alpha in (1.0, -0.1, math.nan):
        with pytest.raises(UserError, match="alpha"):
            calibration.interval([0], [1], alpha=alpha)
        with pytest.raises(UserError, match="alpha"):
            conformal_quantile([1.0], alpha=alpha)
    with pytest.raises(UserError, match="NaN"):
        calibration.interval([math.nan], [1])
    with pytest.raises(UserError, match="one path for each row"):
        calibration.interval([0], [1], strata=["a", "b"])
