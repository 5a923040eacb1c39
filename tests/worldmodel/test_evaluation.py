"""Metrics against counting by hand, brute force and scikit-learn; what is perfect and what is constant."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.made_examples import examples, predictions, world
from trainenv.types import UserError
from trainenv.worldmodel.evaluation import choices, compare, evaluate, matters, seed_noise
from trainenv.worldmodel.evaluation.divergence import alarm, brier_by_decision, leads
from trainenv.worldmodel.evaluation.errors import crps
from trainenv.worldmodel.evaluation.ranking import pick, recall_by_chance, recall_of_best, spearman
from trainenv.worldmodel.evaluation.statistics import (
    AveragePrecision,
    bounds,
    mean,
    resampled,
    share,
    value,
)
from trainenv.worldmodel.examples import LEVELS

few = st.lists(st.integers(-3, 3), min_size=2, max_size=7)


def leaf(report: dict[str, Any], *path: str) -> Any:
    for name in path:
        report = report[name]
    return report


def number(report: dict[str, Any], *path: str) -> float:
    return float(leaf(report, *path)["value"])


# ── scores of single forecasts ──────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(-5, 5))
def test_crps_of_a_point_is_its_absolute_error(at: float, outcome: float) -> None:
    assert crps(np.full((1, 5), at), np.array([outcome]))[0] == pytest.approx(
        abs(at - outcome), abs=1e-12
    )


def test_crps_by_hand() -> None:
    # Losses of the five levels at y = 0, quantiles −2 … 2: τ·2, τ·1, 0, (1 − τ)·1, (1 − τ)·2, of which 0.1, 0.25, 0, 0.25, 0.1.
    found = crps(np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]]), np.zeros(1))[0]
    assert found == pytest.approx(2 * (0.15 * 0.1 + 0.225 * 0.25) * 2)


def test_crps_of_a_normal_is_near_the_integral() -> None:
    from scipy.stats import norm

    quantiles = norm.ppf(LEVELS)[None].repeat(200, axis=0)
    outcome = norm.ppf((np.arange(200) + 0.5) / 200)
    assert crps(quantiles, outcome).mean() == pytest.approx(1 / math.sqrt(math.pi), rel=0.05)


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=5, max_size=5), st.floats(-3, 3))
def test_crps_is_best_where_the_median_is_and_narrow(levels: list[float], outcome: float) -> None:
    quantiles = np.sort(np.array([levels]))
    assert (
        crps(quantiles, np.array([outcome]))[0]
        >= crps(np.full((1, 5), outcome), np.array([outcome]))[0]
        == 0
    )


# ── order within a snapshot ─────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(few, st.randoms(use_true_random=False))
def test_spearman_is_scipy_s(values: list[int], random: Any) -> None:
    from scipy.stats import spearmanr

    others = values[:]
    random.shuffle(others)
    found = spearman(np.array(values, dtype=float), np.array(others, dtype=float))
    if len(set(values)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(values, others).statistic)


def test_spearman_of_a_constant_forecast_is_0() -> None:
    assert spearman(np.zeros(4), np.arange(4.0)) == 0
    assert spearman(np.arange(4.0), np.arange(4.0)) == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(few, few, st.integers(1, 5))
def test_recall_is_that_of_random_order_among_ties(
    forecast: list[int], outcome: list[int], top: int
) -> None:
    count = min(len(forecast), len(outcome))
    top = min(top, count - 1)
    a, b = np.array(forecast[:count], dtype=float), np.array(outcome[:count], dtype=float)
    best = {place for place in range(count) if b[place] == b.min()}
    hits, orders = 0, 0
    # Of equal forecasts every order is as likely: those of all candidates that sort the forecasts.
    for subset in itertools.combinations(range(count), top):
        rest = [place for place in range(count) if place not in subset]
        if max(a[list(subset)]) <= min(a[rest]):
            orders += 1
            hits += bool(best & set(subset))
    assert recall_of_best(a, b, top) == pytest.approx(hits / orders)
    assert recall_of_best(np.zeros(count), b, top) == pytest.approx(recall_by_chance(b, top))
    assert recall_of_best(b, b, top) == 1


def test_chance_of_six_in_fourteen() -> None:
    assert recall_by_chance(np.arange(14.0), 6) == pytest.approx(6 / 14)


def test_picks() -> None:
    assert pick(np.array([0.0, 1.0, 2.0])).tolist() == [1, 0, 0]
    assert pick(np.array([0.0, 0.0, 2.0])).tolist() == [
        1,
        0,
        0,
    ]  # nothing is better than doing nothing
    assert pick(np.array([0.0, -1.0, -1.0])).tolist() == [0, 0.5, 0.5]


# ── divergence ──────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 2)), min_size=1, max_size=12
    )
)
def test_average_precision_is_scikit_learn_s(rows: list[tuple[int, bool, int]]) -> None:
    from sklearn.metrics import average_precision_score

    scores, labels, trunk = (np.array(column) for column in zip(*rows))
    statistic = AveragePrecision(scores=scores.astype(float), labels=labels, trunk=trunk, count=3)
    weights = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]])
    for weight, found in zip(weights, statistic.of(weights)):
        if (labels * weight[trunk]).sum() == 0:
            assert math.isnan(found)
        else:
            assert found == pytest.approx(
                average_precision_score(labels, scores, sample_weight=weight[trunk])
            )


def test_a_constant_risk_has_the_base_rate() -> None:
    labels = np.array([True, False, False, True, False])
    assert value(
        AveragePrecision(scores=np.zeros(5), labels=labels, trunk=np.zeros(5, int), count=1)
    ) == pytest.approx(0.4)


def test_alarms_and_leads_by_hand() -> None:
    made = examples(
        [0] * 5,
        [0] * 5,
        ["single"] * 5,
        np.zeros(5),
        diverged=[3, 3, 0, -1, -1],
        decision_steps=[10],
    )
    hazard = np.array(
        [[0, 0.1, 0.12, 0.5], [0, 0, 0, 0.1], [0.0, 0.9, 0, 0], [0.2, 0, 0, 0], [0.0, 0, 0, 0.1]]
    )
    # Chance by the end of each decision of the first: 0, 0.1, 0.208: it passes 0.2 in decision 2, one before it diverges.
    assert alarm(hazard, 0.2).tolist() == [2, 4, 1, 0, 4]
    caught, steps, false = leads(made, predictions(np.zeros(5), hazard=hazard), 0.2)
    np.testing.assert_array_equal(caught, [1, 0, 0, np.nan, np.nan])
    np.testing.assert_array_equal(steps, [10, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(false, [np.nan, np.nan, np.nan, 1, 0])


def test_brier_by_decision_by_hand() -> None:
    found = brier_by_decision(
        np.array([[0.5, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), np.array([1, -1])
    )
    np.testing.assert_allclose(found, [(0.25 + 0.25 + 0.25 + 0.0) / 4, 0])


# ── noise and choices ───────────────────────────────────────────────────────────────────────────────────────────────


def test_noise_of_a_trunk_its_stratum_its_setting_and_all() -> None:
    kind = ["nudged"] * 4 + ["reordered"] * 4 + ["reordered"] * 2 + ["single"] * 3
    trunk = [0] * 8 + [1] * 2 + [1, 2, 3]
    snapshot = [0] * 8 + [1] * 2 + [1, 2, 3]
    strata = np.array(["clean/random", "clean/random", "clean/fired", "faulty/fired"])
    horizon = [1e-6] * 4 + [0.1, -0.2, 0.3, -0.4] + [0.9, 0.9] + [0.5, 0.1, 2.0]
    made = examples(trunk, snapshot, kind, horizon, strata=strata, final=[math.nan] * 13)
    noise = seed_noise(made)
    assert noise[0, 0] == pytest.approx(
        1.4826 * 0.25
    )  # its own, the greater of the kinds: the median of 0.1 … 0.4
    pooled = 1.4826 * float(np.median([0.1, 0.2, 0.3, 0.4, 0.9, 0.9]))
    assert noise[10, 0] == pytest.approx(pooled)  # too few of its own: its stratum's
    assert noise[11, 0] == pytest.approx(pooled)  # no replica in its stratum: its setting's
    assert noise[12, 0] == pytest.approx(pooled)  # none in its setting: all
    assert np.isnan(noise[:, 2]).all()
    np.testing.assert_array_equal(matters(made, noise)[10:, 0], [False, False, True])
    assert not matters(made, noise)[:, 2].any()


def test_calm_noise_has_a_floor_and_no_replica_no_noise() -> None:
    assert seed_noise(examples([0] * 4, [0] * 4, ["nudged"] * 4, np.zeros(4)))[0, 0] == 1e-4
    assert np.isnan(seed_noise(examples([0], [0], ["single"], [1.0]))).all()


def test_choices_are_different_and_do_something() -> None:
    kind = ["control", "nudged", "single", "every", "sequence", "single"]
    made = examples([0] * 6, [1, 1, 1, 1, 1, 0], kind, np.arange(6.0))
    made.actions[3] = made.actions[2]  # the same as the single one
    made.actions[4] = 0  # a sequence that never did anything
    found = choices(made)
    assert [(one.snapshot, one.rows.tolist(), len(one)) for one in found] == [
        (0, [5], 2),
        (1, [2], 2),
    ]
    assert found[1].values(made.horizon).tolist() == [0.0, 2.0]


# ── statistics ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_means_weigh_rows_and_draws_weigh_trunks() -> None:
    statistic = mean([1.0, 2.0, 6.0, math.nan], [0, 0, 1, 1], 3)
    assert value(statistic) == 3
    assert (statistic.units, statistic.trunks.tolist()) == (3, [True, True, False])
    np.testing.assert_array_equal(
        statistic.of(np.array([[2.0, 0, 0], [1, 2, 0], [0, 0, 2]])), [1.5, 3.75, math.nan]
    )
    assert value(share([1.0, 3.0], [2.0, 2.0], [0, 1], 2)) == 1.0


def test_draws_are_of_the_trunks_present_and_reproducible() -> None:
    present = np.array([True, False, True, True])
    one, two = (resampled(present, 400, 7) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert (one.sum(axis=1) == 3).all()
    assert not one[:, 1].any()
    assert one.mean(axis=0)[[0, 2, 3]] == pytest.approx(1, abs=0.15)
    assert (resampled(present, 400, 8) != one).any()


def test_bootstrap_interval_is_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=200)
    low, high = bounds(
        mean(values, np.arange(200), 200).of(resampled(np.ones(200, dtype=bool), 4000, 0))
    )
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(200), rel=0.08)


def test_rows_of_one_trunk_are_one_draw() -> None:
    values = np.repeat(np.random.default_rng(4).normal(size=10), 50)
    of = np.repeat(np.arange(10), 50)
    low, high = bounds(mean(values, of, 10).of(resampled(np.ones(10, dtype=bool), 2000, 0)))
    assert (high - low) / 2 > 1.2 * values.std() / math.sqrt(10)  # not √500
    assert all(math.isnan(bound) for bound in bounds(np.array([math.nan])))


# ── the report ──────────────────────────────────────────────────────────────────────────────────────────────────────

# Two trunks of one snapshot: a control and three candidates each.
HAND = {
    "trunk": [0] * 4 + [1] * 4,
    "snapshot": [0] * 4 + [1] * 4,
    "kind": ["control", "single", "single", "sequence"] * 2,
    "horizon": [0.0, -0.2, 0.1, 0.4, 0.0, 0.3, 0.2, 0.1],
    "annealed": [0.0, 0.1, -0.3, 0.2, 0.0, 0.1, 0.2, 0.3],
    "final": [0.0, 0.5, -0.1, -0.4] + [math.nan] * 4,
    "strata": np.array(["clean/random", "faulty/fired"]),
    "diverged": [-1, -1, -1, 1, -1, -1, -1, -1],
}
NOISE = np.full((8, 3), 0.1)


def by_hand() -> tuple[Any, Any]:
    median = np.array([0.0, -0.1, -0.2, 0.5, 0.0, 0.1, -0.1, 0.2])
    hazard = np.zeros((8, 4))
    hazard[3, 0], hazard[1, 3] = 0.5, 0.2
    return examples(**HAND), predictions(
        median, spread=1 / 0.9 * 0.2, hazard=hazard
    )  # 90 % intervals of ±0.1


def test_a_report_by_hand() -> None:
    made, told = by_hand()
    report = evaluate(made, told, noise=NOISE, resamples=20)
    assert (report["rows"], report["snapshots"], report["trunks"]) == (6, 2, 2)
    errors = [0.1, 0.3, 0.1, 0.2, 0.3, 0.1]
    assert number(report, "horizon", "all", "mae") == pytest.approx(np.mean(errors))
    assert number(report, "horizon", "all", "mae_in_noise") == pytest.approx(np.mean(errors) * 10)
    # |Δ| > 0.2: 0.4 and 0.3.
    assert number(report, "horizon", "mattering", "mae") == pytest.approx((0.1 + 0.2) / 2)
    assert number(report, "horizon", "mattering", "share") == pytest.approx(2 / 6)
    assert leaf(report, "final", "all", "mae")["units"] == 3
    assert leaf(report, "final", "all", "mae")["trunks"] == 1
    assert number(report, "horizon", "intervals", "marginal", "width") == pytest.approx(0.2)
    assert leaf(report, "horizon", "ranking", "best_in_top_6")["value"] is None  # only four options
    # The lowest annealed medians are the second candidate of each: outcomes −0.3 and 0.2 against −0.2 ± 0.1 and −0.1 ± 0.1.
    assert leaf(report, "annealed", "intervals", "selected", "coverage")["units"] == 6
    assert number(report, "annealed", "intervals", "selected", "coverage") == pytest.approx(0.5)
    assert number(
        report, "annealed", "intervals", "strata", "faulty/fired", "coverage"
    ) == pytest.approx(2 / 3)
    # It chooses the second candidate of each: at the horizon 0.1 and 0.2 against the best, −0.2 and 0 (nothing).
    assert number(report, "regret", "horizon", "annealed", "mean") == pytest.approx((0.3 + 0.2) / 2)
    assert number(report, "regret", "horizon", "annealed", "in_noise") == pytest.approx(2.5)
    assert number(report, "regret", "horizon", "nothing", "mean") == pytest.approx((0.2 + 0.0) / 2)
    assert number(report, "regret", "horizon", "annealed", "of_nothing") == pytest.approx(0.5 / 0.2)
    assert number(report, "regret", "horizon", "random", "mean") == pytest.approx(
        (0.275 + 0.15) / 2
    )
    assert number(report, "regret", "final", "best_look", "mean") == pytest.approx(
        0.9
    )  # a perfect look at +N
    assert number(report, "regret", "final", "best_annealed", "mean") == pytest.approx(0.3)
    assert number(report, "regret", "final", "annealed", "mean") == pytest.approx(0.3)
    # Eight branches: six candidates and two controls; one diverged.
    assert number(report, "divergence", "rate") == pytest.approx(1 / 8)
    assert number(report, "divergence", "brier") == pytest.approx((0.25 + 0.04) / 8)
    assert number(report, "divergence", "auprc") == 1
    assert number(report, "divergence", "caught") == 1
    assert number(report, "divergence", "lead_steps") == 10
    assert number(report, "divergence", "false_alarms") == pytest.approx(1 / 7)
    json.dumps(report, allow_nan=False)


def test_coverage_at_the_bounds_counts() -> None:
    made = examples([0, 0], [0, 0], ["single"] * 2, [0.25, 0.5])
    told = predictions([0.0, 0.0], horizon=np.array([[-0.25, 0, 0, 0, 0.25]] * 2))
    assert (
        number(evaluate(made, told, resamples=5), "horizon", "intervals", "marginal", "coverage")
        == 0.5
    )


def test_what_is_perfect() -> None:
    made, _ = world(12, seed=1)
    lost = made.diverged >= 0
    hazard = np.zeros((len(made), 4))
    hazard[lost, made.diverged[lost]] = 1
    told = {
        name: np.repeat(getattr(made, name)[:, None], 5, axis=1)
        for name in ("horizon", "annealed", "final")
    }
    told["final"] = np.nan_to_num(told["final"])
    report = evaluate(made, predictions(np.zeros(len(made)), hazard=hazard, **told), resamples=10)
    for target in ("horizon", "annealed", "final"):
        assert (
            number(report, target, "all", "mae") == number(report, target, "mattering", "crps") == 0
        )
        assert number(report, target, "ranking", "spearman") == pytest.approx(1)
        assert number(report, target, "ranking", "best_in_top_6") == 1
        assert 0.5 < number(report, target, "ranking", "best_in_top_6_by_chance") < 1
        assert number(report, target, "intervals", "marginal", "coverage") == 1
        assert number(report, target, "intervals", "marginal", "width") == 0
        assert number(report, "regret", target, target, "mean") == 0
        assert number(report, "regret", target, "nothing", "mean") > 0
    assert number(report, "divergence", "brier") == 0
    assert number(report, "divergence", "auprc") == 1
    assert number(report, "divergence", "lead_steps") == 0
    assert number(report, "divergence", "caught") == 1


def test_what_is_constant() -> None:
    made, _ = world(12, seed=1)
    report = evaluate(made, predictions(np.zeros(len(made))), resamples=10)
    assert number(report, "horizon", "ranking", "spearman") == 0
    ranking = report["horizon"]["ranking"]
    assert ranking["best_in_top_6"] == ranking["best_in_top_6_by_chance"]
    assert (
        report["regret"]["final"]["annealed"]["mean"]
        == report["regret"]["final"]["nothing"]["mean"]
    )
    assert number(report, "regret", "final", "annealed", "of_nothing") == 1
    assert number(report, "divergence", "auprc") == pytest.approx(
        number(report, "divergence", "rate")
    )
    assert (
        number(report, "divergence", "caught") == number(report, "divergence", "false_alarms") == 0
    )
    assert number(report, "horizon", "all", "mae") == pytest.approx(
        np.abs(made.horizon[made.candidate]).mean()
    )


def test_controls_are_no_candidates() -> None:
    made, told = by_hand()
    noisy = examples(**{**HAND, "kind": ["control", "nudged", "single", "sequence"] * 2})
    report = evaluate(noisy, told, noise=NOISE, resamples=5)
    assert report["rows"] == 4
    assert number(report, "horizon", "all", "mae") == pytest.approx(np.mean([0.3, 0.1, 0.3, 0.1]))
    assert evaluate(made, told, noise=NOISE, resamples=5)["rows"] == 6


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_order_of_branches_does_not_matter(seed: int) -> None:
    made, effect = world(4, seed=2)
    told = predictions(effect, spread=0.1)
    order = np.random.default_rng(seed).permutation(len(made))
    one = evaluate(made, told, resamples=10)
    other = evaluate(made.where(order), told.where(order), resamples=10)

    def same(a: Any, b: Any) -> None:
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for name in a:
                same(a[name], b[name])
        else:
            assert a == (None if a is None else pytest.approx(b, rel=1e-9, abs=1e-12))

    same(one, other)


def test_intervals_are_reproducible_and_hold_their_value() -> None:
    made, effect = world(12, seed=3)
    told = predictions(effect)
    report = evaluate(made, told, resamples=50)
    assert report == evaluate(made, told, resamples=50)
    assert report != evaluate(made, told, resamples=50, seed=1)
    for path in (
        ("horizon", "all", "mae"),
        ("regret", "horizon", "annealed", "mean"),
        ("horizon", "ranking", "spearman"),
    ):
        one = leaf(report, *path)
        assert one["low"] <= one["value"] <= one["high"]
        assert one["low"] < one["high"]


def test_paired_differences() -> None:
    made, effect = world(12, seed=4)
    good, bad = predictions(effect), predictions(np.zeros(len(made)))
    same = compare(made, good, good, resamples=50)["horizon"]["all"]["mae"]
    assert (same["difference"], same["low"], same["high"], same["ratio"]) == (0, 0, 0, 1)
    one = compare(made, good, bad, resamples=50)
    apart = one["horizon"]["mattering"]["mae"]
    assert apart["difference"] == pytest.approx(apart["a"] - apart["b"])
    assert apart["ratio"] == pytest.approx(apart["a"] / apart["b"])
    assert apart["high"] < 0
    assert apart["ratio_high"] < 0.7
    assert one["horizon"]["mattering"]["share"]["difference"] == 0
    # The interval of the difference is of paired draws: each is that of the rows' differences.
    rows = made.candidate
    differences = np.abs(effect - made.horizon)[rows] - np.abs(made.horizon)[rows]
    low, high = bounds(
        mean(differences, made.trunk[rows], 12).of(resampled(np.ones(12, dtype=bool), 50, 0))
    )
    found = one["horizon"]["all"]["mae"]
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
    json.dumps(one, allow_nan=False)


def test_infinite_intervals_cover_and_have_no_width() -> None:
    made, _ = world(3, seed=5)
    quantiles = np.zeros((len(made), 5)) + np.array([-np.inf, 0, 0, 0, np.inf])
    report = evaluate(made, predictions(np.zeros(len(made)), horizon=quantiles), resamples=20)
    assert number(report, "horizon", "intervals", "marginal", "coverage") == 1
    assert leaf(report, "horizon", "intervals", "marginal", "width")["value"] is None
    json.dumps(report, allow_nan=False)


def test_wrong_use_is_refused() -> None:
    made, told = by_hand()
    none = made.where(np.zeros(8, dtype=bool))
    for call, message in [
        (
            lambda: evaluate(made, told.where(np.arange(7))),
            "of the 8 branches of the examples, found 7",
        ),
        (lambda: evaluate(made, predictions([math.nan] * 8)), "found NaN in horizon of branch 0"),
        (lambda: evaluate(made, told, noise=np.ones((8, 2))), r"shape \(8, 3\), found \(8, 2\)"),
        (lambda: evaluate(made, told, limit=1.0), "limit must be a probability"),
        (
            lambda: evaluate(made, told, resamples=0),
            "resamples must be a whole number, at least 1, found 0",
        ),
        (
            lambda: evaluate(none, told.where(np.zeros(8, dtype=bool))),
            "at least one trunk, found none",
        ),
        (lambda: compare(made, told, told.where(np.arange(7))), "found 7"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
