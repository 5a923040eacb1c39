"""Intervals for picks: the best of 128 is not covered by marginal calibration, and is by ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from trainenv.types import UserError
from trainenv.worldmodel.conformal import CQR, Calibration, Decision, Lowest, fit_selected

Rng = np.random.Generator


def made(
    rng: Rng, count: int, decisions: int = 3, candidates: int = 128, shared: float = 0.25
) -> list[Decision]:
    """Decisions of `count` trunks, whose forecasts err by more than the candidates differ; a part of the error is the trunk's."""
    known = []
    for trunk in range(count):
        bias = rng.normal(0, shared)
        for _ in range(decisions):
            truth = rng.normal(0, 0.5, candidates)
            size = np.exp(rng.normal(0, 0.5, candidates))
            mean = truth + bias + size * rng.normal(0, 1, candidates)
            forecasts = {"mean": mean, "lower": mean - 1.645 * size, "upper": mean + 1.645 * size}
            known.append(Decision(trunk=trunk, forecasts=forecasts, outcome=truth))
    return known


def share_covered(
    calibration: Calibration, decisions: list[Decision], rule: Any, *, joint: bool = False
) -> float:
    """Share of picks covered, or of decisions all of whose picks are; as many picks at each."""
    rows = []
    for one in decisions:
        picks = rule(one.forecasts)
        rows.append(
            [
                np.asarray(column)[picks]
                for column in (one.forecasts["lower"], one.forecasts["upper"], one.outcome)
            ]
        )
    lower, upper, outcome = np.array(rows).transpose(1, 0, 2)  # [decisions, picks] each
    low, high = (
        bound.reshape(lower.shape) for bound in calibration.interval(lower.ravel(), upper.ravel())
    )
    hit = (low <= outcome) & (outcome <= high)
    return float(hit.all(axis=1).mean() if joint else hit.mean())


def first(forecasts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Candidates come in no order, so the first one is a random one."""
    return np.array([0])


def test_the_best_of_128_is_covered_only_by_calibrating_on_it() -> None:
    repetitions, found = 40, {name: [] for name in ("random", "marginal", "selected", "separate")}  # type: dict[str, list[float]]
    for r in range(repetitions):
        rng = np.random.default_rng([8, r])
        known, new = made(rng, 40), made(rng, 20)
        marginal = fit_selected(CQR(), known, first)
        found["random"].append(share_covered(marginal, new, first))
        found["marginal"].append(share_covered(marginal, new, Lowest()))
        found["selected"].append(share_covered(fit_selected(CQR(), known, Lowest()), new, Lowest()))
        found["separate"].append(
            share_covered(fit_selected(CQR(sides="separate"), known, Lowest()), new, Lowest())
        )
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    noise = 4 * max(np.std(values) for values in found.values()) / math.sqrt(repetitions)
    assert noise < 0.06
    assert mean["random"] > 0.9 - noise
    assert mean["marginal"] < 0.5
    assert mean["selected"] > max(0.86, 0.9 - noise)
    assert mean["separate"] > max(0.86, 0.9 - noise)
    assert mean["selected"] < 0.9 + 2 / 41 + noise  # no wider than need be


def test_top_6_one_by_one_and_all_at_once() -> None:
    rule, each, every, naive = Lowest(count=6), [], [], []
    for r in range(30):
        rng = np.random.default_rng([9, r])
        known, new = made(rng, 30, shared=0.5), made(rng, 20, shared=0.5)
        marginal = fit_selected(CQR(), known, rule)
        each.append(share_covered(marginal, new, rule))
        naive.append(share_covered(marginal, new, rule, joint=True))
        every.append(
            share_covered(fit_selected(CQR(), known, rule, joint=True), new, rule, joint=True)
        )
    noise = 4 * max(np.std(each), np.std(every)) / math.sqrt(30)
    assert noise < 0.06
    assert np.mean(each) > 0.9 - noise
    assert np.mean(every) > 0.9 - noise
    assert np.mean(naive) < 0.8  # each one covered is not all of them covered


def test_picks_of_one_trunk_count_as_one() -> None:
    rng = np.random.default_rng(10)
    many = made(rng, 8, decisions=20)  # 160 decisions of 8 runs
    correction = fit_selected(CQR(), many, Lowest()).correction()
    assert (correction.trunks, correction.high) == (8, math.inf)
    assert math.isfinite(fit_selected(CQR(alpha=0.2), many, Lowest()).correction().high)


def test_replays_the_rule_on_forecasts_alone_and_needs_outcomes_of_picks_alone() -> None:
    seen: list[set[str]] = []

    def riskless(forecasts: Mapping[str, np.ndarray]) -> list[int]:
        seen.append(set(forecasts))
        return [int(i) for i in np.flatnonzero(forecasts["risk"] < 0.2)]

    forecasts = {"lower": [0, 0, 0], "upper": [1, 1, 1], "risk": [0.5, 0.1, 0.1]}
    one = Decision(trunk="a", forecasts=forecasts, outcome=[math.nan, 3, math.inf], stratum="early")
    none = Decision(trunk="b", forecasts={**forecasts, "risk": [1, 1, 1]}, outcome=[math.nan] * 3)
    calibration = fit_selected(CQR(), [one, none], riskless)
    assert seen == [{"lower", "upper", "risk"}] * 2
    assert (calibration.high.tolist(), calibration.low.tolist()) == ([2, math.inf], [-3, -math.inf])
    assert (calibration.strata, calibration.trunks.tolist()) == (("early", "early"), [0, 0])
    assert fit_selected(CQR(), [one], riskless, joint=True).high.tolist() == [math.inf]


def test_joint_scores_are_the_worst_of_each_side() -> None:
    one = Decision(
        trunk=0, forecasts={"lower": [0, 0], "upper": [1, 1], "mean": [0, 0]}, outcome=[-2, 4]
    )
    calibration = fit_selected(CQR(sides="separate"), [one], Lowest(count=2), joint=True)
    assert (calibration.low.tolist(), calibration.high.tolist()) == ([2], [3])


def test_lowest_takes_the_first_of_a_tie_and_all_there_are() -> None:
    assert Lowest(count=2)({"mean": np.array([1.0, 0.0, 0.0, 0.0])}).tolist() == [1, 2]
    assert Lowest(by="risk", count=9)({"risk": np.array([2.0, 1.0])}).tolist() == [1, 0]
    with pytest.raises(UserError, match="count must be 1"):
        Lowest(count=0)
    with pytest.raises(UserError, match=r"picks by 'value', found forecasts \['mean'\]"):
        Lowest(by="value")({"mean": np.zeros(2)})


def test_the_order_of_decisions_and_of_candidates_does_not_matter() -> None:
    rng = np.random.default_rng(11)
    known = made(rng, 20)
    mixed = []
    for i in rng.permutation(len(known)):
        order = rng.permutation(128)
        forecasts = {name: np.asarray(column)[order] for name, column in known[i].forecasts.items()}
        mixed.append(
            Decision(
                trunk=f"run {known[i].trunk}",
                forecasts=forecasts,
                outcome=np.asarray(known[i].outcome)[order],
            )
        )
    one, two = (
        fit_selected(CQR(), decisions, Lowest(count=3)).correction() for decisions in (known, mixed)
    )
    assert one == two


@pytest.mark.parametrize(
    ("picks", "message"),
    [
        ([2], "indices from 0 to 1"),
        ([-1], "indices from 0 to 1"),
        ([0, 0], "different indices"),
        ([0.5], "different indices"),
        (0, "different indices"),
        ([[0]], "different indices"),
        ([1], "need outcomes, found NaN"),
    ],
)
def test_bad_picks_are_refused(picks: Any, message: str) -> None:
    one = Decision(trunk=0, forecasts={"lower": [0, 0], "upper": [1, 1]}, outcome=[0, math.nan])
    with pytest.raises(UserError, match=message):
        fit_selected(CQR(), [one], lambda forecasts: picks)


def test_bad_decisions_are_refused() -> None:
    def some(**change: Any) -> Decision:
        return Decision(
            **{"trunk": 0, "forecasts": {"lower": [0], "upper": [1]}, "outcome": [0], **change}
        )

    for decisions, message in [
        ([], "found none"),
        ([some(forecasts={"lower": [0]})], "'lower' and 'upper'"),
        ([some(outcome=[0, 1])], "one entry for each candidate"),
        ([some(forecasts={"lower": [0], "upper": [1, 2]})], "as many rows"),
        (
            [some(forecasts={"lower": [0], "upper": [1], "mean": [math.nan]})],
            "mean must not be NaN",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            fit_selected(CQR(), decisions, first)
