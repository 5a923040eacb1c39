"""The cheap pruner: families found again, the level of a noisy loss, the probability that a branch gets better than the best."""

from __future__ import annotations

import numpy as np
import pytest

from trainenv.worldmodel.curves import CurveForecast, Ensemble, History, make
from trainenv.worldmodel.curves.families import DOMHAN, FAMILIES
from trainenv.worldmodel.curves.level import level

X = np.arange(1.0, 201.0)
TRUTHS = {
    "pow3": lambda x: 2.0 + 3.0 * x**-0.6,
    "pow4": lambda x: 2.0 + 9.0 * (x + 30) ** -0.8,
    "log-log-linear": lambda x: -np.log(0.02 * np.log(x) + 0.03),
    "vapor-pressure": lambda x: np.exp(1.2 + 0.5 / x - 0.1 * np.log(x)),
    "mmf": lambda x: 2.0 + 2.0 / (1 + (x / 40) ** 1.5),
    "weibull": lambda x: 2.0 + 2.0 * np.exp(-((x / 50) ** 0.7)),
    "log-power": lambda x: 5.0 / (1 + (x / 100) ** 0.5),
    "ilog2": lambda x: 1.0 + 3.0 / np.log(x + 1),
    "exponential": lambda x: 2.0 + 2.0 * np.exp(-x / 60),
}


def history_of(losses: np.ndarray) -> History:  # type: ignore[type-arg]
    return History(steps=np.arange(len(losses)), losses=losses, lrs=np.full(len(losses), 1e-3))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_finds_its_own(name: str) -> None:
    truth = TRUTHS[name]
    fitted = FAMILIES[name].fit(X, truth(X), np.full(200, 1 / 200))
    assert np.abs(fitted(X) - truth(X)).max() < 0.02
    assert float(fitted(np.array([400.0]))[0]) == pytest.approx(
        float(truth(np.array([400.0]))[0]), abs=0.02
    )


def test_the_eight_are_the_paper_s() -> None:
    assert len(DOMHAN) == 8
    assert set(FAMILIES) - set(DOMHAN) == {"exponential"}


def test_a_loss_that_rises_is_not_extrapolated_upwards() -> None:
    history = history_of(np.linspace(2.0, 4.0, 100))
    for name in ("pow3", "exponential", "ensemble"):
        assert make(name).fit(history).predict([5000], [1e-3]).mean[0] <= 4.0


@pytest.mark.parametrize("name", ["pow3", "mmf", "weibull"])
def test_the_ensemble_trusts_who_forecast_well(name: str) -> None:
    history = history_of(TRUTHS[name](X))
    fitted = Ensemble(families=(name, "ilog2")).fit(history)
    assert fitted.weights[0] > 0.8
    assert fitted.weights.sum() == pytest.approx(1)


def test_noise_makes_weights_alike() -> None:
    rng = np.random.Generator(np.random.Philox(key=1))
    fitted = Ensemble().fit(history_of(TRUTHS["pow3"](X) + 0.2 * rng.normal(size=200)))
    assert fitted.weights.max() < 0.4


# ── the level ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_level_of_noise_is_its_mean_and_of_a_walk_its_last_value() -> None:
    rng = np.random.Generator(np.random.Philox(key=2))
    noise = level(3.0 + 0.1 * rng.normal(size=250))
    assert noise.mean == pytest.approx(3.0, abs=0.03)
    assert noise.noise == pytest.approx(0.01, rel=0.3)
    assert noise.variance < 0.1 * noise.noise
    walk = np.cumsum(0.1 * rng.normal(size=250))
    found = level(walk)
    assert found.mean == pytest.approx(walk[-1], abs=0.06)
    assert found.walk == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize("rows", [1, 2, 3, 10])
def test_level_of_a_few_rows(rows: int) -> None:
    found = level(np.full(rows, 2.5))
    assert found.mean == pytest.approx(2.5)
    assert min(found.variance, found.noise, found.walk) >= 0


# ── the probability ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_chance_of_a_normal() -> None:
    forecast = CurveForecast(np.array([2.0, 2.0, 2.0]), np.array([0.1, 0.1, 1e9]))
    np.testing.assert_allclose(forecast.chance_below(2.0), 0.5)
    assert forecast.chance_below(2.1)[0] == pytest.approx(0.8413, abs=1e-4)
    assert forecast.chance_below(0.0)[0] < 1e-12


@pytest.mark.parametrize("name", ["last-value", "pow3", "ensemble", "anchored-multi-power"])
def test_chance_rises_with_the_best_and_falls_with_the_loss(name: str) -> None:
    rng = np.random.Generator(np.random.Philox(key=3))
    base = TRUTHS["pow3"](X) + 0.01 * rng.normal(size=200)
    steps, lrs = [220, 260], [1e-3, 1e-3]
    forecast = make(name).fit(history_of(base)).predict(steps, lrs)
    chances = np.array([forecast.chance_below(best)[-1] for best in np.linspace(0.5, 4.0, 30)])
    assert (np.diff(chances) >= 0).all()
    assert chances[0] < 0.05 < 0.95 < chances[-1]
    worse = [
        make(name).fit(history_of(base + shift)).predict(steps, lrs).chance_below(2.1)[-1]
        for shift in (0, 0.2, 0.5, 1.0)
    ]
    assert (np.diff(worse) <= 0).all()


def test_a_hopeless_branch_is_pruned_and_a_good_one_is_not() -> None:
    rng = np.random.Generator(np.random.Philox(key=4))
    noise = 0.03 * rng.normal(size=200)
    good, hopeless = (
        history_of(TRUTHS["pow3"](X) + noise),
        history_of(2.0 + TRUTHS["pow3"](X) + noise),
    )
    best = 2.1
    chances = [
        Ensemble().fit(one).predict([400], [1e-3]).chance_below(best)[0] for one in (good, hopeless)
    ]
    assert chances[0] > 0.05 > chances[1]
