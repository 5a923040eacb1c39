"""What holds for every forecaster of a loss curve."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.types import UserError
from trainenv.worldmodel.curves import (
    FORECASTERS,
    NAMES,
    Ensemble,
    History,
    LastValue,
    Law,
    MultiPower,
    make,
)

LAW = Law(L0=2.0, A=0.5, alpha=0.5, B=60.0, C=0.2, beta=1.2, gamma=0.6)
VARIANTS = {
    **FORECASTERS,
    "held multi-power": MultiPower(law=LAW),
    "transferred multi-power": MultiPower(law=LAW, spread=0.5),
}
LR_AWARE = [name for name in VARIANTS if "multi-power" in name]


def falling(rows: int = 120, *, every: int = 1, noise: float = 0.0, seed: int = 0) -> History:
    """A loss that falls as a power of the step at LR 1e-3, after which it was halved for the last third."""
    steps = every * np.arange(1, rows + 1)
    rng = np.random.Generator(np.random.Philox(key=seed))
    losses = 2.0 + 3.0 * steps**-0.4 + noise * rng.normal(size=rows)
    lrs = np.where(np.arange(rows) < 2 * rows // 3, 1e-3, 5e-4)
    return History(steps=steps, losses=losses, lrs=lrs)


def ahead(history: History, horizon: int = 50) -> np.ndarray:  # type: ignore[type-arg]
    return history.now + 1 + np.arange(horizon)


def sane(forecast) -> None:
    for part in forecast:
        assert part.dtype == np.float64
        assert np.isfinite(part).all()
        assert (part > 0).all()


@pytest.fixture(params=list(VARIANTS), ids=lambda name: name.replace(" ", "-"))
def forecaster(request):
    return VARIANTS[request.param]


# ── the contract ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_shapes(forecaster) -> None:
    history = falling()
    fitted, steps = forecaster.fit(history), ahead(history)
    for lrs, shape in (
        (np.full(50, 1e-3), (50,)),
        (np.full((1, 50), 1e-3), (1, 50)),
        (np.full((7, 50), 1e-3), (7, 50)),
    ):
        forecast = fitted.predict(steps, lrs)
        assert (
            forecast.mean.shape == forecast.std.shape == forecast.chance_below(2.0).shape == shape
        )
        sane(forecast)
    assert fitted.predict(steps, np.full((7, 50), 1e-3), at=[-1, 0]).mean.shape == (7, 2)


@pytest.mark.parametrize("horizon", [1, 30, 400])
def test_a_batch_is_one_at_a_time(forecaster, horizon: int) -> None:
    history = falling(noise=0.01)
    fitted, steps = forecaster.fit(history), ahead(history, horizon)
    lrs = 1e-3 * np.linspace(0.1, 1.5, 6)[:, None] * np.linspace(1, 0.5, horizon)
    batch = fitted.predict(steps, lrs)
    for k, row in enumerate(lrs):
        alone = fitted.predict(steps, row)
        # Long futures are forecast at knots and on a grid that depend on all candidates: alike, not the same.
        np.testing.assert_allclose(batch.mean[k], alone.mean, atol=1e-4 if horizon == 400 else 1e-6)
        np.testing.assert_allclose(batch.std[k], alone.std, atol=1e-4 if horizon == 400 else 1e-6)


def test_some_steps_are_those_of_all(forecaster) -> None:
    history = falling()
    fitted, steps = forecaster.fit(history), ahead(history, 300)
    lrs = np.geomspace(1e-3, 1e-4, 300) * np.array([[1.0], [0.5]])
    whole = fitted.predict(steps, lrs)
    some = fitted.predict(steps, lrs, at=[3, -1, 0])
    np.testing.assert_allclose(some.mean, whole.mean[:, [3, -1, 0]], rtol=1e-12)
    np.testing.assert_allclose(some.std, whole.std[:, [3, -1, 0]], rtol=1e-12)


def test_deterministic_and_nothing_is_written_to(forecaster) -> None:
    history = falling(noise=0.02)
    before = [values.copy() for values in (history.steps, history.losses, history.lrs)]
    steps, lrs = ahead(history), np.full((3, 50), 5e-4)
    kept = lrs.copy()
    first = forecaster.fit(history).predict(steps, lrs)
    fitted = forecaster.fit(falling(noise=0.02))
    fitted.predict(steps[:9], 2 * lrs[:, :9])
    second = fitted.predict(steps, lrs)
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(first.std, second.std)
    for old, new in zip(before, (history.steps, history.losses, history.lrs)):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(lrs, kept)
    second.mean[:] = 0  # the caller's own
    assert fitted.predict(steps, lrs).mean.all()


def test_further_ahead_is_less_certain(forecaster) -> None:
    history = falling(300, noise=0.05)
    std = forecaster.fit(history).predict(ahead(history, 600), np.full(600, 5e-4)).std
    assert std[-1] >= std[0]


def test_frozen_plain_and_copied(forecaster) -> None:
    assert pickle.loads(pickle.dumps(forecaster)) == copy.deepcopy(forecaster) == forecaster
    for field in fields(forecaster):
        with pytest.raises(FrozenInstanceError):
            setattr(forecaster, field.name, 1)


def test_steps_and_learning_rates_have_no_scale_of_their_own() -> None:
    """A run with steps a hundred times as many, or learning rates ten times as high, is forecast alike."""
    for name in ("last-value", "pow3", "exponential", "multi-power", "anchored-multi-power"):
        history = falling(noise=0.01)
        expected = make(name).fit(history).predict(ahead(history), np.full(50, 3e-4)).mean
        stretched = History(
            steps=100 * (history.steps + 1) - 1, losses=history.losses, lrs=10 * history.lrs
        )
        again = (
            make(name)
            .fit(stretched)
            .predict(100 * (ahead(history) + 1) - 1, np.full(50, 3e-3))
            .mean
        )
        np.testing.assert_allclose(again, expected, atol=2e-2 if "multi" in name else 1e-6)


# ── hard cases ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_constant_curve_goes_on(forecaster) -> None:
    history = History(steps=np.arange(1, 101), losses=np.full(100, 3.0), lrs=np.full(100, 1e-3))
    forecast = forecaster.fit(history).predict(ahead(history), np.full(50, 1e-3))
    sane(forecast)
    held = forecaster == VARIANTS["held multi-power"]  # believes its law, whatever it sees
    np.testing.assert_allclose(forecast.mean, 3.0, atol=0.5 if held else 0.02)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_a_short_history(forecaster, rows: int) -> None:
    history = falling(rows)
    sane(forecaster.fit(history).predict(ahead(history), np.full((2, 50), 1e-3)))


def test_what_was_not_measured_is_left_out(forecaster) -> None:
    history = falling(100)
    rows = np.setdiff1d(np.arange(100), [0, 17, 50, 51, 99])
    losses = history.losses.copy()
    losses[[0, 17, 50, 51, 99]] = [np.nan, np.inf, -np.inf, -1.0, 1e30]
    forecast = forecaster.fit(History(steps=history.steps, losses=losses, lrs=history.lrs)).predict(
        ahead(history), np.full(50, 5e-4)
    )
    sane(forecast)
    shorter = History(steps=history.steps[rows], losses=history.losses[rows], lrs=history.lrs[rows])
    expected = forecaster.fit(shorter).predict(ahead(history), np.full(50, 5e-4))
    np.testing.assert_allclose(forecast.mean, expected.mean, atol=0.02)


@pytest.mark.parametrize("then", [0.0, 1e-9, 1e-2, 1.0])
@pytest.mark.parametrize("start", [0.0, 1e-3])
def test_learning_rates_of_zero_and_far_above(forecaster, start: float, then: float) -> None:
    history = History(steps=np.arange(0, 60), losses=np.geomspace(9, 3, 60), lrs=np.full(60, start))
    sane(
        forecaster.fit(history).predict(
            ahead(history), np.stack([np.full(50, then), np.linspace(then, 0, 50)])
        )
    )


def test_warming_up_again(forecaster) -> None:
    lrs = np.concatenate(
        [
            np.linspace(1e-5, 1e-3, 20),
            np.full(80, 1e-3),
            np.full(50, 1e-4),
            np.linspace(1e-4, 1e-3, 50),
        ]
    )
    history = History(steps=np.arange(1, 201), losses=2 + 3 * np.arange(1, 201) ** -0.4, lrs=lrs)
    sane(forecaster.fit(history).predict(ahead(history), np.full(50, 1e-3)))


def test_steps_that_jump(forecaster) -> None:
    steps = np.array([0, 1, 2, 3, 500, 501, 10_000, 10_001, 10_500, 11_000, 11_400, 90_000])
    history = History(
        steps=steps, losses=9 - np.log(steps + 2) / 2, lrs=np.linspace(1e-3, 1e-4, 12)
    )
    sane(
        forecaster.fit(history).predict(
            history.now + np.array([1.0, 7.0, 4000.0]), np.array([1e-4, 1e-4, 0.0])
        )
    )


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_never_nan(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 40))
    gaps = data.draw(st.lists(st.integers(1, 1000), min_size=rows, max_size=rows))
    loss = st.one_of(
        st.floats(1e-3, 20), st.sampled_from([0.0, 1e-300, 1e5, 3.0, math.nan, math.inf, -1.0])
    )
    losses = data.draw(st.lists(loss, min_size=rows, max_size=rows))
    rate = st.sampled_from([0.0, 1e-30, 1e-8, 1e-4, 1e-3, 0.1, 10.0])
    lrs = data.draw(st.lists(rate, min_size=rows, max_size=rows))
    later = data.draw(st.lists(rate, min_size=6, max_size=6))
    losses[data.draw(st.integers(0, rows - 1))] = 2.5  # at least one
    history = History(steps=np.cumsum(gaps) - 1, losses=losses, lrs=lrs)
    for forecaster in VARIANTS.values():
        fitted = forecaster.fit(history)
        forecast = fitted.predict(
            history.now + np.array([1, 2, 3, 50, 3000, 1e6]), np.array([later, later[::-1]])
        )
        sane(forecast)
        chance = forecast.chance_below(2.0)
        assert ((chance >= 0) & (chance <= 1)).all()


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD = {"steps": [1, 2, 3], "losses": [3.0, 2.9, 2.8], "lrs": [1e-3] * 3}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": [1, 2]}, "found 2 steps, 3 losses, 3 lrs"),
        ({"steps": [], "losses": [], "lrs": []}, "at least one"),
        ({"steps": [1, 1, 2]}, "rise.*position 1"),
        ({"steps": [-1, 1, 2]}, "position 0"),
        ({"steps": [1, math.nan, 2]}, "position 1"),
        ({"lrs": [1e-3, -1e-3, 1e-3]}, "found -0.001"),
        ({"lrs": [1e-3, math.nan, 1e-3]}, "found nan"),
        ({"losses": [math.nan] * 3}, "finite and above 0, found none"),
        ({"losses": [[3.0], [2.9], [2.8]]}, r"shape \[3, 1\]"),
        ({"first_lr_sum": -1.0}, "first_lr_sum"),
        ({"first_lr_sum": math.nan}, "first_lr_sum"),
    ],
)
def test_histories_that_cannot_be(wrong, message: str) -> None:
    with pytest.raises(UserError, match=message):
        History(**{**GOOD, **wrong})


@pytest.mark.parametrize(
    ("steps", "lrs", "at", "message"),
    [
        ([3, 4], [1e-3] * 2, None, "above 3, found 3 at position 0"),
        ([4, 4], [1e-3] * 2, None, "position 1"),
        ([], [], None, "empty"),
        ([4, 5], [1e-3] * 3, None, r"\[candidates, 2\], found \[3\]"),
        ([4, 5], np.ones((2, 2, 2)), None, r"found \[2, 2, 2\]"),
        ([4, 5], np.ones((0, 2)), None, r"found \[0, 2\]"),
        ([4, 5], [1e-3, -1.0], None, "found -1"),
        ([4, 5], [1e-3, math.inf], None, "found inf"),
        ([4, 5], [1e-3] * 2, [2], r"found \[2\]"),
        ([4, 5], [1e-3] * 2, [], "found none"),
    ],
)
def test_futures_that_cannot_be(forecaster, steps, lrs, at, message: str) -> None:
    fitted = forecaster.fit(History(**GOOD))
    with pytest.raises(UserError, match=message):
        fitted.predict(steps, lrs, at=at)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("anchored", {}, "did you mean 'anchored-multi-power'"),
        ("ensemble", {"recentcy": 3.0}, "did you mean 'recency'"),
        ("last-value", {"gain": 1.0}, "it has: none"),
        ("ensemble", {"recency": 0.5}, "at least 1"),
        ("ensemble", {"families": ()}, "found none"),
        ("ensemble", {"families": ("pow5",)}, "found pow5"),
        ("multi-power", {"spread": -1.0}, "at least 0"),
        ("multi-power", {"spread": 0.0}, "fixes a law, found none"),
        ("multi-power", {"recent": 1.0}, "below 1"),
        ("multi-power", {"relative_error": "small"}, "found 'small'"),
    ],
)
def test_hyperparameters_that_cannot_be(name: str, wrong, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(name, **wrong)


def test_making_one() -> None:
    assert tuple(FORECASTERS) == NAMES
    assert make("last-value") == LastValue()
    assert make("ensemble", families=["pow3"]) == Ensemble(families=("pow3",)) == make("pow3")
    assert make("anchored-multi-power", recent=0.3) == MultiPower(recent=0.3)


def test_scipy_waits_until_it_is_used() -> None:
    code = "import sys, trainenv.worldmodel.curves; sys.exit(any(name.split('.')[0] == 'scipy' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
