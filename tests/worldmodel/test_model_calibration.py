"""Calibration: intervals cover on trunks never seen, picks are wider, risks add up, and too little evidence is everything."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.made_examples import examples, predictions
from tests.support.made_models import calibration_examples, model
from trainenv.types import UserError
from trainenv.worldmodel.calibration import (
    ALARM,
    ALPHA,
    Calibrations,
    nats,
    scaled_hazard,
    strata_of,
    units,
)
from trainenv.worldmodel.examples import LEVELS, TARGETS, Examples, Predictions
from trainenv.worldmodel.features import STATE
from trainenv.worldmodel.model import Model

TRIED = 8  # candidates of a snapshot
QUANTILES = np.array([-1.645, -0.674, 0.0, 0.674, 1.645])


def simulated(
    trunks: int, *, seed: int, narrow: float = 0.5, known: float = 1.0
) -> tuple[Examples, Predictions]:
    """Forecasts of candidates that are noisy and too narrow; errors of a trunk go together. Each has its own true Δ."""
    rng = np.random.default_rng(seed)
    n, trunk = trunks * TRIED, np.repeat(np.arange(trunks), TRIED)
    truth = rng.normal(0, 0.3, n)
    error = 0.4 * rng.normal(size=trunks)[trunk] + 0.8 * rng.normal(size=n)
    final = np.where(rng.random(trunks)[trunk] < known, nats(truth), math.nan)
    made = examples(trunk, trunk, np.array(["single"] * n), nats(truth), final=final)
    spread = nats((truth + error)[:, None] + narrow * QUANTILES)
    said = predictions(
        np.zeros(n), horizon=spread, annealed=spread, final=spread, disagreement=rng.random(n)
    )
    return made, replace(said, hazard=np.full((n, 4), 0.05), instability=np.full(n, 0.3))


def covered(outcome: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    return np.asarray((outcome >= bounds[:, 0]) & (outcome <= bounds[:, -1]))


def strata(made: Examples) -> np.ndarray:
    return np.asarray(strata_of(made.states[made.snapshot], made.actions[..., 0].sum(axis=1)))


def test_intervals_cover_what_they_say_on_trunks_never_seen() -> None:
    """And picks, the lowest of eight forecasts, only with the intervals made for picks."""
    marginal, picked, of_picks, widths = [], [], [], []
    for seed in range(24):
        calibrations = Calibrations.fit(*simulated(50, seed=2 * seed))
        made, said = simulated(200, seed=2 * seed + 1)
        raw = covered(made.annealed, said.annealed).mean()
        assert raw < 0.75  # or there would be nothing to mend
        plain, wide = (
            calibrations.apply(said, strata(made)),
            calibrations.apply(said, strata(made), picks=True),
        )
        best = np.array(
            [
                rows[np.argmin(said.annealed[rows, 2])]
                for rows in np.arange(len(made)).reshape(-1, TRIED)
            ]
        )
        marginal.append(covered(made.annealed, plain.annealed).mean())
        picked.append(covered(made.annealed, plain.annealed)[best].mean())
        of_picks.append(covered(made.annealed, wide.annealed)[best].mean())
        widths.append(
            (wide.annealed[:, -1] - wide.annealed[:, 0]).mean()
            / (plain.annealed[:, -1] - plain.annealed[:, 0]).mean()
        )
    assert 0.88 < np.mean(marginal) < 0.94
    assert np.mean(picked) < 0.85  # selection bites
    assert 0.88 < np.mean(of_picks) < 0.95
    assert np.mean(widths) > 1.1


def test_quantiles_rise_and_the_middle_stays() -> None:
    made, said = simulated(30, seed=1, narrow=3.0)  # far too wide: they are to shrink
    mended = Calibrations.fit(made, said).apply(said, strata(made))
    for target in TARGETS:
        before, after = getattr(said, target), getattr(mended, target)
        assert (np.diff(after, axis=1) >= -1e-12).all()
        np.testing.assert_allclose(after[:, 1:-1], before[:, 1:-1], rtol=1e-9, atol=1e-12)
        assert (after[:, -1] - after[:, 0]).mean() < (before[:, -1] - before[:, 0]).mean()


def test_with_too_few_trunks_anything_is_possible() -> None:
    made, said = simulated(12, seed=3, known=0.4)
    assert 0 < len({*made.trunk[np.isfinite(made.final)]}) < 9
    calibrations = Calibrations.fit(made, said)
    for picks in (False, True):
        mended = calibrations.apply(said, strata(made), picks=picks)
        for target in TARGETS:
            assert np.isfinite(getattr(mended, target)).all()
        assert mended.final[:, 0].max() < -50
        assert mended.final[:, -1].min() > 50
        assert np.abs(mended.annealed).max() < 1
    assert (
        Calibrations.from_state(json.loads(json.dumps(calibrations.state))).state
        == calibrations.state
    )


def test_fewer_trunks_than_a_limit_of_disagreement_needs_are_refused() -> None:
    with pytest.raises(UserError, match="needs finite disagreements of 9 trunks, found 6"):
        Calibrations.fit(*simulated(6, seed=3))


def test_a_level_of_0_is_as_wide_as_anything_was_ever_off() -> None:
    made, said = simulated(30, seed=4)
    fitted = replace(
        Calibrations.fit(made, said), alpha={"horizon": 0.0, "annealed": 0.3, "final": ALPHA}
    )
    mended = fitted.apply(said, strata(made))
    widest, wide, narrow = (
        one[:, -1] - one[:, 0] for one in (mended.horizon, mended.final, mended.annealed)
    )
    assert (widest > wide).all()  # the same forecasts at another level
    assert (wide > narrow).all()
    assert covered(made.horizon, mended.horizon).all()
    at_the_last_trunk = replace(fitted, alpha=dict.fromkeys(TARGETS, 1 / 31)).apply(
        said, strata(made)
    )
    assert np.array_equal(mended.horizon, at_the_last_trunk.horizon)


def test_what_is_alike_is_calibrated_together() -> None:
    """Where raised rates are forecast worse than lowered ones, their intervals are wider."""
    made, said = simulated(60, seed=5)
    actions = made.actions.copy()
    raised = np.arange(len(made)) % 2 == 0
    actions[:, 0, 0] = np.where(raised, 0.3, -0.3)
    off = np.where(raised, 5.0, 1.0)
    made = replace(
        made,
        actions=actions,
        annealed=nats(
            units(said.annealed[:, 2]) + off * (units(made.annealed) - units(said.annealed[:, 2]))
        ),
    )
    fresh = Calibrations.fit(made, said).apply(said, strata(made))
    width = units(fresh.annealed[:, -1]) - units(fresh.annealed[:, 0])
    assert width[raised].mean() > 3 * width[~raised].mean()


def test_strata_are_what_is_seen_beforehand() -> None:
    states = np.zeros((4, len(STATE)))
    states[2:, STATE.index("fired_recency")] = ALARM + 0.01
    assert strata_of(states, np.array([0.2, -0.2, 0.0, 0.2])).tolist() == [
        "calm/raised",
        "calm/lowered",
        "alarmed/kept",
        "alarmed/raised",
    ]


def test_state_there_and_back() -> None:
    calibrations = model().calibrations
    assert calibrations is not None
    moved = replace(calibrations, alpha={**calibrations.alpha, "final": 0.25})
    back = Calibrations.from_state(json.loads(json.dumps(moved.state, allow_nan=False)))
    assert back.state == moved.state
    made, raw = calibration_examples(), Model(model().networks).raw(calibration_examples())
    for picks in (False, True):
        one, other = (each.apply(raw, strata(made), picks=picks) for each in (moved, back))
        for name in Predictions.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


CHANCE = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(CHANCE, min_size=4, max_size=4), CHANCE)
def test_hazards_multiply_up_to_the_divergence(hazard: list[float], divergence: float) -> None:
    scaled = scaled_hazard(np.array([hazard]), np.array([divergence]))[0]
    assert ((scaled >= 0) & (scaled <= 1)).all()
    if max(hazard) > 1e-6:
        assert 1 - np.prod(1 - scaled) == pytest.approx(min(divergence, 1 - 1e-9), abs=1e-6)
    assert (np.diff(scaled)[np.diff(hazard) > 0] >= 0).all()  # their order stays


def test_calibrated_divergence_is_a_frequency() -> None:
    """Risks said ten times too high come out as often as they happen."""
    rng = np.random.default_rng(0)
    made, said = simulated(200, seed=6)
    risk = rng.uniform(0.01, 0.09, len(made))
    said = replace(
        said,
        hazard=np.stack([10 * risk, *[np.zeros(len(made))] * 3], axis=1),
        instability=10 * risk,
    )
    happened = rng.random(len(made)) < risk
    made = replace(made, diverged=np.where(happened, 0, -1), fired=happened)
    mended = Calibrations.fit(made, said).apply(said, strata(made))
    assert mended.divergence.mean() == pytest.approx(happened.mean(), abs=0.005)
    assert mended.instability.mean() == pytest.approx(happened.mean(), abs=0.005)
    high = risk > 0.05
    assert mended.divergence[high].mean() > 1.3 * mended.divergence[~high].mean()


@settings(max_examples=40, deadline=None)
@given(st.floats(-100, 100))
def test_units_and_nats_are_inverse(delta: float) -> None:
    assert float(nats(units(np.array([delta])))[0]) == pytest.approx(delta, rel=1e-9, abs=1e-12)
    assert math.isfinite(float(nats(np.array([delta * 1e300]))[0]))


def test_levels_are_of_a_90_percent_interval() -> None:
    assert LEVELS[-1] - LEVELS[0] == pytest.approx(1 - ALPHA)


def test_a_level_that_a_stratum_has_too_few_trunks_for_asks_its_parent() -> None:
    """Nine trunks are enough at 0.1 and too few at 0.08, where late labels may have moved the level."""
    made, said = simulated(60, seed=0)
    fitted = Calibrations.fit(made, said)
    divided = {
        name: replace(
            one, strata=tuple("calm/raised" if trunk < 9 else "calm/kept" for trunk in one.trunks)
        )
        for name, one in fitted.intervals.items()
    }
    strict = replace(fitted, intervals=divided, alpha=dict.fromkeys(TARGETS, 0.08))
    assert math.isinf(divided["annealed"].correction("calm/raised", alpha=0.08).high)
    own, parents = (
        strict.apply(said, np.full(len(made), stratum)).annealed
        for stratum in ("calm/raised", "calm")
    )
    assert np.array_equal(own, parents)
