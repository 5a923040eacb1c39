"""Proposals by the hypergradient, pruning by learning curves, and adaptive width."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainenv import planners
from trainenv.interventions import ActionCodec
from trainenv.planners import AdaptiveWidth, CurvePruner, hypergradient, risk_of
from trainenv.planners.testing import START, ToyWorld, watched
from trainenv.planners.testing.toy import history
from trainenv.types import Intervention, Reading, RunHistory, UserError
from trainenv.worldmodel.curves import History, make
from trainenv.worldmodel.curves.law import Law, gather, loss

CODEC = ActionCodec()
MASKS = CODEC.masks(START)


def with_cosines(cosines: list[float]) -> RunHistory:
    made = history(steps=len(cosines))
    return replace(
        made,
        telemetry=[
            replace(t, hypergradient_cosine=c) for t, c in zip(made.telemetry, cosines, strict=True)
        ],
    )


# ── proposals ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cosine", "scales"),
    [(0.3, [1.1]), (0.01, [1.1]), (-0.08, [0.9, 0.8]), (-0.5, [0.8, 0.9]), (0.0, [])],
)
def test_the_sign_and_the_size_of_the_cosine_choose(cosine: float, scales: list[float]) -> None:
    proposed = hypergradient(with_cosines([cosine] * 64), CODEC, MASKS)
    assert [sequence[0] for sequence in proposed] == [
        Intervention(lr_scale=scale) for scale in scales
    ]


def test_noise_proposes_nothing_and_old_steps_do_not_count() -> None:
    rng = np.random.default_rng(0)
    assert (
        hypergradient(
            with_cosines((0.3 * rng.standard_normal(64)).tolist()), CODEC, MASKS, certainty=3.0
        )
        == []
    )
    turned = with_cosines([0.5] * 64 + [-0.5] * 64)
    assert hypergradient(turned, CODEC, MASKS, most=1)[0][0].lr_scale == 0.8
    assert hypergradient(with_cosines([math.nan] * 64), CODEC, MASKS) == []
    assert hypergradient(with_cosines([0.5]), CODEC, MASKS) == []
    mostly = [math.nan if step % 8 else -0.5 for step in range(64)]
    assert hypergradient(with_cosines(mostly), CODEC, MASKS, most=1)[0][0].lr_scale == 0.8


def test_only_legal_proposals() -> None:
    masks = (np.array([True, False, True, True]), *MASKS[1:])
    assert [one[0].lr_scale for one in hypergradient(with_cosines([-0.5] * 8), CODEC, masks)] == [
        0.9
    ]
    with pytest.raises(UserError, match="gain must be a finite number, above 0"):
        hypergradient(with_cosines([0.1] * 8), CODEC, MASKS, gain=0)


def test_planners_look_at_proposals_first() -> None:
    made = with_cosines([-0.5] * 64)
    problem, model, _ = watched(
        ToyWorld(seed=1).problem(1, history=made, proposals=hypergradient(made, CODEC, MASKS))
    )
    planners.make("grid", candidates=3).plan(problem)
    assert model.asked == [
        (Intervention(),),
        (Intervention(lr_scale=0.8),),
        (Intervention(lr_scale=0.9),),
    ]


# ── pruning ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CONSTANT = [1e-3] * 400


def falling(ahead: list[float]) -> RunHistory:
    """A run whose loss falls as a power of the step, at a constant learning rate."""
    made = history(steps=256, ahead=len(ahead))
    rows = [replace(t, loss=2.0 + 4.0 * t.step**-0.5) for t in made.telemetry]
    return replace(made, telemetry=rows, lrs_ahead=ahead)


class Sure:
    """A forecaster that says of each path what the sum of its learning rates says, and how sure it is."""

    def __init__(self, std: float) -> None:
        self.std, self.asked = std, np.zeros((0, 0))

    def fit(self, history: History, /) -> Sure:
        assert len(history.steps) == 256
        return self

    def predict(self, steps: Any, lrs: Any, at: Any = None) -> Any:
        assert at == [-1]
        self.asked = np.asarray(lrs)
        gaps = np.diff(np.concatenate([[256], steps]))
        mean = 3.0 - (self.asked * gaps).sum(axis=1, keepdims=True)
        return type("Forecast", (), {"mean": mean, "std": np.full_like(mean, self.std)})


def scaled(*scales: float) -> tuple[Intervention, ...]:
    return tuple(Intervention(lr_scale=scale) for scale in scales)


def test_those_without_a_chance_are_dropped_and_the_reason_says_so() -> None:
    sure, paths = (
        Sure(0.005),
        [scaled(0.8), scaled(1.1), scaled(0.9), (Intervention(momentum_reset=True),)],
    )
    pruner = CurvePruner(forecaster=sure, history=History)
    found = pruner.hopeless(falling(CONSTANT), paths)
    assert found[0].startswith(
        "pruned: P(final loss below that of the best learning rate) = 0.000 < 0.05"
    )
    assert found[1] == ""  # the best
    assert found[2] != ""
    assert found[3] == ""  # it leaves the learning rate alone
    assert (
        CurvePruner(forecaster=Sure(1.0), history=History).hopeless(falling(CONSTANT), paths)
        == [""] * 4
    )


def test_chances_are_those_of_normals() -> None:
    """The sums for the factors 1.1 and 0.9 differ by 0.08."""
    paths = [scaled(1.1), scaled(0.9)]
    for z, kept in ((1.5, True), (1.8, False)):  # P = 0.067 and 0.036
        pruner = CurvePruner(forecaster=Sure(0.08 / z / math.sqrt(2)), history=History)
        assert (pruner.hopeless(falling(CONSTANT), paths)[1] == "") == kept
    keeps_all = CurvePruner(forecaster=Sure(1e-9), history=History, chance=0.0)
    assert keeps_all.hopeless(falling(CONSTANT), paths) == ["", ""]


def test_learning_rates_come_into_force_one_decision_after_the_other() -> None:
    sure = Sure(0.1)
    ahead = np.linspace(1e-3, 1e-4, 400).tolist()
    CurvePruner(forecaster=sure, history=History, points=8).hopeless(
        falling(ahead), [scaled(0.8, 0.9)]
    )
    nothing, path = sure.asked
    assert nothing == pytest.approx(np.array(ahead).reshape(8, 50).mean(axis=1))
    assert path / nothing == pytest.approx([0.8] + [0.72] * 7)  # a decision is 50 steps


def annealing() -> RunHistory:
    """The first half of a run that follows the multi-power law under a cosine, with noise."""
    lrs = 1e-3 * (0.55 + 0.45 * np.cos(np.pi * np.arange(800) / 800))
    law = Law(L0=2.0, A=0.5, alpha=0.5, B=400.0, C=100.0, beta=0.5, gamma=0.3)
    changes, sums = gather(1e-3, 1e-3, np.ones(800), lrs, np.arange(800))
    losses = loss(law, sums, changes)[:400] + 0.01 * np.random.default_rng(0).standard_normal(400)
    made = history(steps=400)
    rows = [
        replace(t, loss=float(y), lr=float(lr)) for t, y, lr in zip(made.telemetry, losses, lrs)
    ]
    return replace(made, telemetry=rows, lrs_ahead=lrs[400:].tolist())


def test_with_the_project_s_own_forecasters() -> None:
    """The multi-power law drops a learning rate of next to nothing; one that is blind to learning rates drops none."""
    candidates = [scaled(0.001), scaled(0.9), scaled(1.1)]
    aware = CurvePruner(forecaster=make("anchored-multi-power"), history=History)
    found = aware.hopeless(annealing(), candidates)
    assert found[0].startswith("pruned")
    assert found[1:] == ["", ""]
    blind = CurvePruner(forecaster=make("pow3"), history=History)
    assert blind.hopeless(annealing(), candidates) == ["", "", ""]


def test_what_is_pruned_is_recorded_and_never_forecast() -> None:
    pruner = CurvePruner(forecaster=Sure(1e-4), history=History)
    problem, model, _ = watched(
        ToyWorld(seed=1).problem(1, history=falling(CONSTANT), pruner=pruner)
    )
    plan = planners.make("grid").plan(problem)
    pruned = [one for one in plan.dropped if one.reason.startswith("pruned")]
    assert (
        len(pruned) == 2 * 18
    )  # two of four learning rates, each with 3 · 3 · 2 values of the other parts
    assert model.futures == 72 - 36 == len(plan.candidates)
    assert not {one.interventions for one in pruned} & set(model.asked)


def test_at_the_end_of_the_run_nothing_is_pruned() -> None:
    pruner = CurvePruner(forecaster=Sure(1e-9), history=History)
    assert pruner.hopeless(replace(falling(CONSTANT), lrs_ahead=[]), [scaled(0.8)]) == [""]
    assert pruner.hopeless(replace(falling(CONSTANT), lrs_ahead=[1e-3]), [scaled(0.8)])[0] != ""


# ── width ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_risk_never_means_fewer_branches(a: float, b: float) -> None:
    width = AdaptiveWidth()
    assert 8 <= width.of(min(a, b)) <= width.of(max(a, b)) <= 128
    assert (width.of(0.02), width.of(0.11), width.of(0.2)) == (8, 32, 128)


def test_risk_is_the_greater_of_what_both_say() -> None:
    forecast = ToyWorld().problem().model.forecast(history(), [Intervention()])[0]  # type: ignore[union-attr]
    calm = replace(forecast, divergence=0.1, instability=0.2)
    assert risk_of(calm) == pytest.approx(1 - 0.9 * 0.8)
    assert risk_of(replace(calm, abstain=True)) == 1.0
    assert risk_of(reading=Reading(fired=True)) == 1.0
    assert [risk_of(reading=Reading(index=i, threshold=2.0)) for i in (0.5, 1.0, 1.5, 3.0)] == [
        0.0,
        0.0,
        0.25,
        0.5,
    ]
    assert risk_of(reading=Reading()) == 0.0
    assert risk_of(calm, Reading(index=2.0, threshold=2.0)) == 0.5
    with pytest.raises(UserError, match="found neither"):
        risk_of()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"least": 0}, "least must be"),
        ({"most": 4}, "at least 8"),
        ({"alarm": 0.02}, "above 0.02"),
        ({"calm": -0.1}, "at least 0"),
    ],
)
def test_widths_that_are_none(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        AdaptiveWidth(**wrong)
    with pytest.raises(UserError, match="risk must be a finite number"):
        AdaptiveWidth().of(1.5)
