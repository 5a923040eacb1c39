"""Risk: calibrated probabilities from few divergences, limits that hold on new trunks, and abstaining."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.types import UserError
from trainenv.worldmodel.conformal import Isotonic, Platt, disagreement_limit, risk_limit


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def cross_entropy(p: Any, y: Any) -> float:
    return float(-np.mean(np.where(y, np.log(p), np.log1p(-p))))


# --- probabilities


def test_platt_finds_the_line_that_overconfident_risks_lie_on() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(-2, 1.5, 20_000)
    y = rng.random(20_000) < sigmoid(truth)
    forecast = sigmoid(3 * truth + 2)  # so logit p = (logit forecast − 2)/3
    platt = Platt.fit(forecast, y, trunks=range(20_000))
    assert platt.slope == pytest.approx(1 / 3, abs=0.02)
    assert platt.intercept == pytest.approx(-2 / 3, abs=0.05)
    isotonic = Isotonic.fit(forecast, y, trunks=range(20_000))
    for fit in (platt, isotonic):
        p = fit(forecast)
        for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1)):
            inside = (p >= low) & (p < high)
            assert p[inside].mean() == pytest.approx(
                y[inside].mean(), abs=4 * math.sqrt(0.25 / inside.sum())
            )


def test_platt_equals_its_stationary_point() -> None:
    # At the optimum both sums of residuals are 0: Σ m·(p − t) and Σ m·(p − t)·x, with his targets t and m = 1/N_k.
    p = np.array([0.1, 0.3, 0.2, 0.9, 0.6, 0.5, 0.4, 0.8])
    y = np.array([0, 0, 1, 1, 1, 0, 0, 1])
    trunks = np.array([0, 0, 1, 2, 3, 4, 4, 5])
    m = np.array([0.5, 0.5, 1, 1, 1, 0.5, 0.5, 1])
    platt = Platt.fit(p, y, trunks=trunks, least_positives=4)
    t = np.where(y, 5 / 6, 1 / 4)  # four trunks that diverged, two that did not
    residual = m * (platt(p) - t)
    assert abs(residual.sum()) < 1e-9
    assert abs(residual @ np.log(p / (1 - p))) < 1e-9


def test_few_divergences_move_the_level_alone_and_none_prove_nothing() -> None:
    rng = np.random.default_rng(1)
    p, y = rng.uniform(0.01, 0.99, 40), np.zeros(40)
    none = Platt.fit(p, y, trunks=range(40))
    assert none.slope == 1
    assert none(p).mean() == pytest.approx(1 / 42)  # Laplace's rule, and the ranking stays
    assert (np.argsort(none(p)) == np.argsort(p)).all()
    y[:4] = 1
    assert Platt.fit(p, y, trunks=range(40)).slope == 1
    assert Platt.fit(p, y, trunks=range(40), least_positives=4).slope != 1
    # Four rows of one trunk are one divergence.
    assert Platt.fit(p, y, trunks=[0] * 4 + list(range(1, 37)), least_positives=2).slope == 1


def test_a_ranking_that_is_wrong_is_not_turned_round() -> None:
    p, y = np.linspace(0.1, 0.9, 40), np.array([1] * 10 + [0] * 30)
    platt = Platt.fit(p, y, trunks=range(40))
    assert platt.slope == 0
    assert platt(p) == pytest.approx(np.full(40, (10 * 11 / 12 + 30 / 32) / 40))


def test_separable_and_extreme_risks_stay_finite() -> None:
    platt = Platt.fit([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], [0] * 5 + [1] * 5, trunks=range(10))
    assert platt([0.0, 1.0]) == pytest.approx([1 / 7, 6 / 7])
    assert np.isfinite(Platt.fit([0.5] * 20, [0, 1] * 10, trunks=range(20))([0.0, 0.5, 1.0])).all()


def test_platt_beats_isotonic_on_few_divergences() -> None:
    rng, losses = np.random.default_rng(2), []
    for _ in range(30):
        truth = rng.normal(-2.5, 1.2, 1060)
        y, forecast = rng.random(1060) < sigmoid(truth), sigmoid(2 * truth + 1)
        fits = [kind.fit(forecast[:60], y[:60], trunks=range(60)) for kind in (Platt, Isotonic)]
        losses.append(
            [
                cross_entropy(q, y[60:])
                for q in (forecast[60:], *(fit(forecast[60:]) for fit in fits))
            ]
        )
    raw, platt, isotonic = np.mean(losses, axis=0)
    assert platt < raw
    assert platt < isotonic


def test_isotonic_equals_scikit_learn_between_its_least_and_greatest() -> None:
    # scikit-learn 1.9.1: IsotonicRegression(out_of_bounds="clip").fit(x, y, sample_weight=w).predict(at)
    x, y = [0.1, 0.2, 0.2, 0.4, 0.5, 0.7, 0.8, 0.9], [0, 1, 0, 0, 1, 0, 1, 1]
    trunks = ["a", "b", "c", "c", "d", "e", "f", "f"]  # so w = [1, 1, .5, .5, 1, 1, .5, .5]
    at = [0, 0.15, 0.2, 0.3, 0.45, 0.6, 0.75, 1.0]
    expected = [0.0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.75, 1.0]
    fit = Isotonic.fit(x, y, trunks=trunks)
    found = fit(at)
    assert found[[2, 3, 4, 5]] == pytest.approx([0.5] * 4)
    assert found[[0, -1]] == pytest.approx([1 / 8, 7 / 8])  # six trunks
    assert found[[1, 6]] == pytest.approx([(1 / 8 + 0.5) / 2, (0.5 + 7 / 8) / 2])
    assert np.clip(expected, 1 / 8, 7 / 8)[[0, 2, 3, 4, 5, 7]] == pytest.approx(
        found[[0, 2, 3, 4, 5, 7]]
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.integers(0, 9)), min_size=1, max_size=40)
)
def test_calibrated_risks_are_ordered_probabilities(rows: list[tuple[float, bool, int]]) -> None:
    p, y, trunks = zip(*rows)
    at = np.linspace(0, 1, 21)
    for kind in (Platt, Isotonic):
        fit = kind.fit(p, y, trunks=trunks)
        found = fit(at)
        assert ((found > 0) & (found < 1)).all()
        assert (np.diff(found) >= -1e-12).all()
        assert (
            kind.from_state(json.loads(json.dumps(fit.state, allow_nan=False)))(at) == found
        ).all()
        order = np.random.default_rng(0).permutation(len(p))
        again = kind.fit(np.array(p)[order], np.array(y)[order], trunks=np.array(trunks)[order])
        np.testing.assert_allclose(again(at), found, rtol=0, atol=1e-6)


# --- limits


def test_a_limit_is_the_greatest_that_the_budget_allows() -> None:
    # Nine trunks of one row: (Σ R + 1)/10 ≤ 0.3 lets two divergences through, and keeps the third out.
    risk, diverged = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], [0, 1, 0, 0, 1, 0, 1, 0, 1]
    assert risk_limit(risk, diverged, alpha=0.3, trunks=range(9)) == 0.7
    assert risk_limit(risk, diverged, alpha=0.1, trunks=range(9)) == 0.2
    assert risk_limit(risk, diverged, alpha=0.09, trunks=range(9)) == -math.inf
    assert risk_limit(risk, [0] * 9, alpha=0.1, trunks=range(9)) == math.inf
    assert (
        risk_limit([0.5] * 9, diverged, alpha=0.3, trunks=range(9)) == 0.5
    )  # all or none of a tie
    # One trunk: R ≤ 2·0.75 − 1. A decision costs what its worst candidate costs, so its second one comes for nothing.
    assert (
        risk_limit([0.1, 0.2, 0.3], [1, 1, 1], alpha=0.75, trunks=[0, 0, 0], decisions=[0, 0, 1])
        == 0.3
    )
    assert risk_limit([0.1, 0.2, 0.3], [1, 1, 1], alpha=0.75, trunks=[0, 0, 0]) == 0.2
    assert (
        risk_limit([0.1, 0.2, 0.3], [1, 1, 1], alpha=0.6, trunks=[0, 0, 0], decisions=[0, 0, 1])
        == 0.1
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2)),
            min_size=1,
            max_size=6,
        ),
        min_size=2,
        max_size=10,
    ),
    st.sampled_from([0.05, 0.2, 0.4, 0.8]),
    st.booleans(),
)
def test_each_trunk_left_out_in_turn_costs_no_more_than_alpha(
    groups: Any, alpha: float, by_decision: bool
) -> None:
    risk, cost, decisions = (
        np.concatenate([[row[i] for row in g] for g in groups]) for i in range(3)
    )
    trunks = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    costs = []
    for trunk in range(len(groups)):
        out = trunks == trunk
        picked = decisions[~out] if by_decision else None
        limit = risk_limit(
            risk[~out], cost[~out], alpha=alpha, trunks=trunks[~out], decisions=picked
        )
        paid = np.where(risk[out] < limit, cost[out], 0)
        costs.append(
            np.mean([paid[decisions[out] == d].max() for d in set(decisions[out])])
            if by_decision
            else paid.mean()
        )
    assert np.mean(costs) <= alpha + 1e-9


def test_whichever_candidate_is_picked_below_a_limit_by_decision_diverges_rarely() -> None:
    rng, worst, plain = np.random.default_rng(3), [], []
    for _ in range(200):
        risk = rng.random((80, 16))  # 40 known trunks and 40 new ones, 16 candidates
        diverged = rng.random((80, 16)) < 0.3 * risk**2
        trunks = np.repeat(np.arange(40), 16)
        known = (risk[:40].ravel(), diverged[:40].ravel())
        for kept, decisions in ((worst, trunks), (plain, None)):
            limit = risk_limit(*known, alpha=0.2, trunks=trunks, decisions=decisions)
            passed = risk[40:] < limit
            # An adversary picks a candidate that diverges wherever one was let through.
            kept.append((passed & diverged[40:]).any(axis=1).mean())
    assert 0.15 < np.mean(worst) <= 0.2
    assert np.mean(plain) > 0.5


def test_abstains_rarely_on_what_it_knows_and_often_on_what_it_does_not() -> None:
    rng, usual, odd = np.random.default_rng(4), [], []
    for _ in range(300):
        base = np.exp(rng.normal(0, 0.3, 59))
        known = np.repeat(base[:39], 5) * np.exp(rng.normal(0, 0.1, 195))
        limit = disagreement_limit(known, alpha=0.1, trunks=np.repeat(np.arange(39), 5))
        usual.append((base[39:] * np.exp(rng.normal(0, 0.1, 20)) > limit).mean())
        odd.append((3 * base[39:] > limit).mean())
    assert np.mean(usual) <= 0.1 + 4 * np.std(usual) / math.sqrt(300)
    assert np.mean(odd) > 0.9


def test_bad_input_is_refused() -> None:
    for kind in (Platt, Isotonic):
        for change, message in [
            ({"risk": [0.5, 1.5]}, "risk must lie between 0 and 1"),
            ({"risk": [0.5, math.nan]}, "risk must not be NaN"),
            ({"risk": [], "diverged": [], "trunks": []}, "at least one"),
            ({"diverged": [0, 0.5]}, "diverged must be 0 or 1, found 0.5"),
            ({"diverged": [0]}, "as many rows"),
            ({"trunks": [0]}, "trunks must name"),
        ]:
            with pytest.raises(UserError, match=message):
                kind.fit(**{"risk": [0.5, 0.1], "diverged": [0, 1], "trunks": [0, 1], **change})
    for alpha in (0, 1, math.nan):
        with pytest.raises(UserError, match="alpha must be above 0"):
            risk_limit([0.1], [0], alpha=alpha, trunks=[0])
        with pytest.raises(UserError, match="alpha must be above 0"):
            disagreement_limit([0.1], alpha=alpha, trunks=[0])
    with pytest.raises(UserError, match="diverged must lie"):
        risk_limit([0.1], [2], alpha=0.5, trunks=[0])
    with pytest.raises(UserError, match=r"needs finite disagreements of 9 trunks, found 1"):
        disagreement_limit([0.1] * 20, alpha=0.1, trunks=[0] * 20)
