"""The forecasters: least squares with forgetting, as a batch solution gives it, and finite whatever comes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.monitor.forecasters import Forecasters

FORGETTING = (0.9, 0.95, 0.98, 0.99, 0.995)
RIDGE = 1e-2


def series(length: int, seed: int = 0, noise: float = 0.1) -> np.ndarray:  # type: ignore[type-arg]
    """An autoregressive loss around 3."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    x, values = 0.0, []
    for _ in range(length):
        x = 0.8 * x + noise * rng.normal()
        values.append(3.0 + x)
    return np.array(values)


def features(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """[n, 4]: one, the loss less the first, and its two averages, after each value."""
    rows, fast, slow = [], 0.0, 0.0
    for x in values - values[0]:
        fast += 0.3 * (x - fast)
        slow += 0.05 * (x - slow)
        rows.append((1.0, x, fast, slow))
    return np.array(rows)


def batch_disagreement(values: np.ndarray) -> float:  # type: ignore[type-arg]
    """Disagreement about what follows `values`, each forecaster solved anew for every past step."""
    known, targets = features(values), values - values[0]

    def solve(count: int, forgetting: float) -> np.ndarray:  # type: ignore[type-arg]
        weights = forgetting ** np.arange(count - 1, -1, -1.0)
        inputs = known[:count]
        normal = (inputs * weights[:, None]).T @ inputs + RIDGE * forgetting**count * np.eye(4)
        return np.linalg.solve(normal, (inputs * weights[:, None]).T @ targets[1 : count + 1])  # type: ignore[no-any-return]

    error = 0.0
    for step in range(1, len(values)):
        misses = [abs(targets[step] - known[step - 1] @ solve(step - 1, f)) for f in FORGETTING]
        error += max(0.02, 1 / step) * (np.mean(misses) - error)
    forecasts = [known[-1] @ solve(len(values) - 1, f) for f in FORGETTING]
    return float(np.std(forecasts) / error)


@pytest.mark.parametrize("length", [8, 9, 20, 60, 150])
def test_against_batch_least_squares(length: int) -> None:
    values = series(length, seed=length)
    forecasters = Forecasters()
    found = [forecasters.update(value) for value in values.tolist()][-1]
    assert found == pytest.approx(batch_disagreement(values), rel=1e-5)


def test_nothing_is_said_before_enough_was_seen() -> None:
    forecasters = Forecasters()
    said = [forecasters.update(value) for value in series(12).tolist()]
    assert all(map(math.isnan, said[:7]))
    assert all(map(math.isfinite, said[7:]))
    assert all(value >= 0 for value in said[7:])


def test_agreed_while_habits_last_and_apart_when_they_break() -> None:
    values = series(1500)
    values[1000:] = values[1000] + 0.05 * np.arange(500) * (-1.0) ** np.arange(500)
    forecasters = Forecasters()
    said = np.array([forecasters.update(value) for value in values.tolist()])
    calm, broken = said[500:1000], said[1001:1020]
    assert broken.max() > 3 * np.median(calm)


@pytest.mark.parametrize("shift", [-3.0, 0.5, 64.0])
def test_only_changes_of_the_loss_count(shift: float) -> None:
    values = series(120)
    one, other = Forecasters(), Forecasters()
    plain = [one.update(value) for value in values.tolist()]
    shifted = [other.update(value) for value in (values + shift).tolist()]
    np.testing.assert_allclose(shifted, plain, rtol=1e-4)


def test_what_is_not_finite_is_no_forecast_and_leaves_the_state() -> None:
    forecasters = Forecasters()
    for value in series(30).tolist():
        forecasters.update(value)
    before = forecasters.state_dict()
    for bad in (math.nan, math.inf, -math.inf):
        assert math.isnan(forecasters.update(bad))
    assert forecasters.state_dict() == before


hostile = st.one_of(
    st.floats(-1e3, 1e3),
    st.sampled_from([0.0, 1e6, -1e6, 1e-30, 3.0]),
)


@given(values=st.lists(hostile, min_size=10, max_size=200), repeats=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_finite_whatever_comes(values: list[float], repeats: int) -> None:
    forecasters = Forecasters()
    for value in values * repeats:
        said = forecasters.update(value)
        assert math.isnan(said) or math.isfinite(said)
    state = forecasters.state_dict()
    assert np.isfinite(state["weights"]).all()
    assert np.isfinite(state["covariance"]).all()
    assert math.isfinite(said)


@pytest.mark.parametrize(
    "values", [[3.0] * 5000, [3.0 + 1e-9 * n for n in range(5000)], [0.0, 1.0] * 2500]
)
def test_nothing_grows_without_end_while_nothing_new_is_seen(values: list[float]) -> None:
    forecasters = Forecasters()
    for value in values:
        forecasters.update(value)
    covariance = np.array(forecasters.state_dict()["covariance"])
    assert np.trace(covariance, axis1=1, axis2=2).max() < 1.2e4
    for value in series(300).tolist():
        assert math.isfinite(forecasters.update(value))


@pytest.mark.parametrize("cut", [0, 1, 5, 8, 50])
def test_state_goes_on_exactly(cut: int) -> None:
    values = series(120).tolist()
    whole, first, second = Forecasters(), Forecasters(), Forecasters()
    expected = [whole.update(value) for value in values][cut:]
    for value in values[:cut]:
        first.update(value)
    for value in values[60:70]:
        second.update(value)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    np.testing.assert_array_equal([second.update(value) for value in values[cut:]], expected)
