"""Accept rules: each row of their tables, and which of those that are accepted comes first."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainenv.types import (
    AcceptRule,
    Branch,
    Estimate,
    Forecast,
    Intervention,
    Outcome,
    Paired,
    UserError,
)
from trainenv.verification.rules import NAMES, Agreement, Annealed, Better, Risk, make, name_of
from trainenv.verification.verify import expected

NAN = math.nan


def forecast(
    divergence: float = 0.05, low: float = -0.03, median: float = -0.01, high: float = 0.01
) -> Forecast:
    at = Estimate(median, median, low, high)
    return Forecast(
        horizon=at,
        annealed=at,
        final=at,
        hazard=(divergence / 4,) * 4,
        divergence=divergence,
        instability=0.1,
        recovery=Estimate(1.0, 1.0, 0.0, 2.0),
        disagreement=0.01,
        abstain=False,
    )


def branch(delta: float = -0.01, volatility: float = 1.0, **more: Any) -> Branch:
    usual: dict[str, Any] = {
        "score": -0.02,
        "outcome": Outcome(looks=(0, 5), validation=(2.0, 1.9), volatility=volatility),
    }
    return Branch(interventions=(Intervention(lr_scale=0.9),), delta=delta, **(usual | more))


CONTROL = branch(0.0)
DIVERGED = branch(NAN, outcome=Outcome(diverged=True, volatility=0.1))


@pytest.mark.parametrize(
    ("rule", "found", "refused"),
    [
        # no forecast: only harm counts
        (Agreement(), branch(-0.5), ""),
        (Agreement(), branch(0.0199), ""),
        (Agreement(), branch(0.02), "harms: validation"),
        (Agreement(harm=0.0), branch(-1e-9), ""),
        (Agreement(harm=0.0), branch(0.0), "harms: validation"),
        (Agreement(), branch(NAN), "not measured"),
        # the draft's interval
        (Agreement(), branch(0.01, expected=(-0.03, -0.01, 0.01)), ""),
        (Agreement(), branch(0.0101, expected=(-0.03, -0.01, 0.01)), "the draft had said"),
        (Agreement(), branch(-0.04, expected=(-0.03, -0.01, 0.01)), ""),
        (
            Agreement(surprise=False),
            branch(-0.04, expected=(-0.03, -0.01, 0.01)),
            "the draft had said",
        ),
        (Agreement(surprise=False), branch(-0.03, expected=(-0.03, -0.01, 0.01)), ""),
        (Agreement(), branch(0.03, expected=(-0.03, 0.0, 0.05)), "harms: validation"),
        # training losses on the same batches
        (Agreement(), branch(paired=Paired(0.05, 0.01, 9)), "harms: training loss"),
        (Agreement(), branch(paired=Paired(0.05, 0.02, 9)), ""),
        (Agreement(), branch(paired=Paired(0.5, math.inf, 1)), ""),
        # the specification's rule
        (Risk(), branch(-0.01, 2.0, forecast=forecast(0.19)), ""),
        (Risk(), branch(-0.01, 2.0, forecast=forecast(0.2)), "forecast risk"),
        (Risk(), branch(-0.01, 0.5, forecast=forecast(0.9)), "forecast risk"),
        (Risk(), branch(0.01, 0.9, forecast=forecast()), ""),
        (Risk(), branch(0.01, 1.0, forecast=forecast()), "neither"),
        (Risk(), branch(0.0, 1.0), "neither"),
        (Risk(), branch(-1e-6, 1.0), ""),
        (Risk(bound=1.0), branch(-0.01, forecast=forecast(0.99)), ""),
        # after the cool-down
        (Annealed(), branch(0.5, annealed_delta=-0.0021), ""),
        (Annealed(), branch(-0.5, annealed_delta=-0.002), "after the cool-down"),
        (Annealed(margin=0.0), branch(annealed_delta=0.0), "after the cool-down"),
        (Annealed(margin=0.0), branch(annealed_delta=-1e-9), ""),
        (Annealed(), branch(annealed_delta=NAN), "not measured"),
        # at once
        (Better(), branch(-0.0051), ""),
        (Better(), branch(-0.005), "not better by 0.005"),
        (Better(), branch(-0.001, paired=Paired(-0.01, 1.0, 9)), ""),
        (Better(), branch(-0.01, paired=Paired(-0.001, 1.0, 9)), ""),
        (Better(), branch(-0.5, paired=Paired(0.0, 0.1, 9)), "training loss +0.0000"),
        (Better(), branch(0.0, paired=Paired(-0.5, 0.1, 9)), "validation loss +0.0000"),
        (Better(margin=0.0), branch(-1e-9), ""),
        (Better(), branch(NAN), "not measured"),
    ],
)
def test_what_is_accepted(rule: AcceptRule, found: Branch, refused: str) -> None:
    said = rule.objection(found, CONTROL)
    assert bool(said) == bool(refused)
    assert refused in said


@pytest.mark.parametrize(
    ("scales", "delta", "accepted"),
    [
        ((0.8,), -0.002, False),  # a lower rate is that much better at first in any run
        ((0.8,), -0.006, True),
        ((0.8,) * 4, 0.0004, False),
        ((0.8, 1.1), -0.002, False),
        ((0.8, 1.25), -0.002, True),  # back where it was
        ((1.1,), 0.001, True),
        ((1.0,), 0.001, True),
    ],
)
def test_more_is_asked_of_a_lower_learning_rate(
    scales: tuple[float, ...], delta: float, accepted: bool
) -> None:
    found = replace(
        branch(delta), interventions=tuple(Intervention(lr_scale=scale) for scale in scales)
    )
    said = Agreement(cut=0.005).objection(found, CONTROL)
    assert (said == "") == accepted
    assert accepted or "better at first" in said
    assert Agreement().objection(found, CONTROL) == ""
    for wrong in (-0.1, NAN, math.inf):
        with pytest.raises(UserError, match="cut must be a finite number"):
            Agreement(cut=wrong)


def test_beside_a_control_that_diverged_anything_is_calm() -> None:
    assert Risk().objection(branch(0.3, 9.0, forecast=forecast()), DIVERGED) == ""
    assert Risk().objection(branch(0.3, 9.0, forecast=forecast(0.5)), DIVERGED) != ""


def test_what_comes_first() -> None:
    one, two = (
        branch(-0.01, score=-0.5, annealed_delta=-0.01),
        branch(-0.02, score=-0.1, annealed_delta=-0.03),
    )
    assert Agreement().rank(one) < Agreement().rank(two)  # the draft's long view
    assert (
        Agreement().rank(branch(-0.2, score=NAN)) == -0.2
    )  # what was measured, where there is none
    for rule in (Risk(), Annealed(), Better()):
        assert rule.rank(two) < rule.rank(one)


@given(
    deltas=st.tuples(*[st.floats(-0.2, 0.2)] * 2),
    volatility=st.floats(0, 3),
    rule=st.sampled_from(
        [Agreement(), Agreement(surprise=True, harm=0.0), Risk(), Annealed(), Better()]
    ),
)
def test_what_is_better_is_never_refused_where_the_worse_is_accepted(
    deltas: tuple[float, float], volatility: float, rule: AcceptRule
) -> None:
    better, worse = (
        branch(d, volatility, annealed_delta=d, expected=(-0.01, 0.0, 0.05), forecast=forecast())
        for d in sorted(deltas)
    )
    assert rule.objection(worse, CONTROL) or not rule.objection(better, CONTROL)


@given(share=st.floats(0, 3), width=st.floats(0.1, 10))
def test_the_interval_of_a_share_of_the_horizon(share: float, width: float) -> None:
    at = forecast(low=-0.04, median=-0.01, high=0.03)
    low, median, high = expected(at, share, width)
    scale = min(share, 1.0) ** 0.25
    assert median == scale * -0.01
    assert low == pytest.approx(scale * (-0.01 - width * 0.03))
    assert high == pytest.approx(scale * (-0.01 + width * 0.04))
    assert low <= median <= high


def test_the_whole_horizon_is_as_forecast() -> None:
    assert expected(forecast(low=-0.04, median=-0.01, high=0.03), 1.0) == pytest.approx(
        (-0.04, -0.01, 0.03)
    )
    assert expected(forecast(low=-0.04, median=-0.01, high=0.03), 1 / 16) == pytest.approx(
        (-0.02, -0.005, 0.015)
    )


@pytest.mark.parametrize("name", NAMES)
def test_rules_by_name(name: str) -> None:
    rule = make(name)
    assert name_of(rule) == name
    assert isinstance(rule, AcceptRule)
    assert rule.measure == ("annealed" if name == "annealed" else "horizon")


@pytest.mark.parametrize(
    ("wrong", "more", "said"),
    [
        ("agrement", {}, "agreement"),
        ("risk", {"bond": 0.1}, "bound"),
        ("risk", {"bound": 0.0}, "probability"),
        ("risk", {"bound": NAN}, "probability"),
        ("agreement", {"harm": -0.1}, "at least 0"),
        ("agreement", {"harm": NAN}, "at least 0"),
        ("annealed", {"margin": math.inf}, "finite"),
    ],
)
def test_mistakes_are_sentences(wrong: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(wrong, **more)
