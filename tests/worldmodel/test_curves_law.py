"""The multi-power law: its sums as the paper writes them, its parameters found again, its anchor."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trainenv.types import UserError
from trainenv.worldmodel.curves import History, Law, MultiPower
from trainenv.worldmodel.curves.law import gain, gather, loss
from trainenv.worldmodel.curves.law_fit import CENTRE, Scale, curve, to_coordinates, to_law

PEAK = 1e-3
LAW = Law(L0=2.0, A=0.5, alpha=0.45, B=120.0, C=0.3, beta=1.2, gamma=0.5)


def slow_losses(law: Law, lrs: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """The paper's equation 1, as a double loop, for every step from 1 on; the learning rate before it is the first."""
    losses = []
    for t in range(len(lrs)):
        gained = 0.0
        for k in range(1, t + 1):
            since = sum(lrs[k : t + 1])
            gained += (lrs[k - 1] - lrs[k]) * (
                1 - (1 + law.C * lrs[k] ** -law.gamma * since) ** -law.beta
            )
        losses.append(law.L0 + law.A * sum(lrs[: t + 1]) ** -law.alpha - law.B * gained)
    return np.array(losses)


def losses_of(law: Law, lrs: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """The same by the library, without gathering."""
    changes, sums = gather(float(lrs[0]), 0.0, np.ones(len(lrs)), lrs, np.arange(len(lrs)))
    return loss(law, sums, changes)


def schedule(name: str, n: int) -> np.ndarray:  # type: ignore[type-arg]
    u = np.arange(n) / n
    shapes = {
        "constant": np.ones(n),
        "cosine": 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * u)),
        "wsd": np.where(u < 0.7, 1.0, 0.1 ** ((u - 0.7) / 0.3)),
        "step": np.where(u < 0.4, 1.0, 0.3),
        "low step": np.where(u < 0.5, 1.0, 0.1),
        "up again": np.where((u > 0.3) & (u < 0.6), 0.2, 1.0),
    }
    return PEAK * shapes[name]


def history_of(lrs: np.ndarray, law: Law = LAW, noise: float = 0.0) -> History:  # type: ignore[type-arg]
    rng = np.random.Generator(np.random.Philox(key=len(lrs)))
    return History(
        steps=np.arange(1, len(lrs) + 1),
        losses=losses_of(law, lrs) + noise * rng.normal(size=len(lrs)),
        lrs=lrs,
    )


@pytest.mark.parametrize("name", ["constant", "cosine", "wsd", "step", "up again"])
def test_against_the_double_loop(name: str) -> None:
    lrs = schedule(name, 90)
    np.testing.assert_allclose(losses_of(LAW, lrs), slow_losses(LAW, lrs), rtol=1e-12)


def test_gathering_keeps_sums_and_mean_positions() -> None:
    lrs = schedule("cosine", 40)
    gaps = np.arange(1.0, 41.0)
    every, sums = gather(2 * PEAK, 0.7, gaps, lrs, np.arange(40))
    some, at = gather(2 * PEAK, 0.7, gaps, lrs, np.array([4, 20, 39]))
    np.testing.assert_allclose(sums, 0.7 + np.cumsum(gaps * lrs))
    np.testing.assert_allclose(at, sums[[4, 20, 39]])
    for block, rows in enumerate((slice(0, 5), slice(5, 21), slice(21, 40))):
        assert some.drop[block] == pytest.approx(every.drop[rows].sum())
        assert some.position[block] == pytest.approx(
            np.average(every.position[rows], weights=every.drop[rows])
        )
    np.testing.assert_allclose(every.position, np.concatenate([[0.7], sums[:-1]]), rtol=1e-12)


def test_what_annealing_gains_in_the_end() -> None:
    lrs = np.concatenate([np.full(50, PEAK), np.full(1, 1e-4), np.full(200_000, 1e-4)])
    changes, sums = gather(PEAK, 0.0, np.ones(len(lrs)), lrs, np.array([49, 50, len(lrs) - 1]))
    assert gain(LAW, sums, changes)[-1] == pytest.approx(LAW.B * 9e-4, rel=0.01)
    assert gain(LAW, sums[:1], changes)[0] == 0  # nothing before


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": 0.0}, {"beta": -1.0}, {"B": -1.0}, {"L0": float("nan")}, {"C": float("inf")}],
)
def test_laws_that_cannot_be(wrong) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        dataclasses.replace(LAW, **wrong)


def test_coordinates_come_back() -> None:
    scale = Scale(0.9, PEAK, 2.4)
    again = to_law(to_coordinates(LAW, scale), scale)
    assert dataclasses.asdict(again) == pytest.approx(dataclasses.asdict(LAW))
    np.testing.assert_allclose(to_coordinates(to_law(CENTRE, scale), scale), CENTRE)
    nothing = dataclasses.replace(LAW, L0=0.0, A=0.0, B=0.0, C=0.0)
    assert np.isfinite(to_coordinates(nothing, scale)).all()


# ── fitting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_known_parameters_are_found_from_several_schedules() -> None:
    names = ("constant", "cosine", "wsd", "step", "low step")
    law = (
        MultiPower()
        .pooled([history_of(schedule(name, 2000 if name != "cosine" else 3000)) for name in names])
        .law
    )
    assert law is not None
    for field, tolerance in (
        ("L0", 0.02),
        ("alpha", 0.06),
        ("B", 0.06),
        ("beta", 0.2),
        ("gamma", 0.15),
    ):
        assert getattr(law, field) == pytest.approx(getattr(LAW, field), rel=tolerance), field
    unseen = schedule("up again", 1500)
    np.testing.assert_allclose(
        losses_of(law, unseen)[200:], losses_of(LAW, unseen)[200:], atol=3e-3
    )


def test_noise_is_lived_with() -> None:
    pooled = MultiPower().pooled(
        [
            history_of(schedule(name, 2000), noise=0.03)
            for name in ("constant", "cosine", "low step")
        ]
    )
    assert pooled.law is not None
    unseen = schedule("wsd", 1500)
    np.testing.assert_allclose(
        losses_of(pooled.law, unseen)[200:], losses_of(LAW, unseen)[200:], atol=0.02
    )


def test_one_history_with_a_change_in_it_tells_what_the_next_change_does() -> None:
    lrs = schedule("up again", 1000)
    seen, later = lrs[:900], schedule("low step", 1000)[500:]
    whole = np.concatenate([seen, later])
    fitted = MultiPower().fit(history_of(seen))
    forecast = fitted.predict(901 + np.arange(500), later)
    truth = losses_of(LAW, whole)
    still = abs(truth[899] - truth[-1])
    assert abs(forecast.mean[-1] - truth[-1]) < 0.15 * still


def test_a_constant_history_leaves_the_belief() -> None:
    """Nothing is known of B, C, β and γ: the default says that annealing gains about what e times the steps would."""
    lrs = schedule("constant", 1000)
    fitted = MultiPower().fit(history_of(lrs))
    scale = Scale(float(lrs.sum()), PEAK, history_of(lrs).last_loss)
    assert fitted.law is not None
    np.testing.assert_allclose(to_coordinates(fitted.law, scale)[3:], CENTRE[3:], atol=1e-3)
    certain = fitted.predict([1500], [PEAK]).std
    doubtful = fitted.predict(1001 + np.arange(500), np.full(500, PEAK / 10), at=[-1]).std
    assert doubtful > 2 * certain


def test_warm_up_counts_in_the_sum_and_is_no_change() -> None:
    warm = History(
        steps=np.arange(1, 201),
        losses=np.full(200, 3.0),
        lrs=np.minimum(np.arange(1, 201) / 50, 1) * PEAK,
    )
    seen = curve(warm)
    assert not seen.changes.drop.any()
    assert seen.last_sum == pytest.approx(warm.lrs.sum())
    assert seen.first_sum == pytest.approx(warm.lrs[:50].sum())


def test_pooling_needs_something() -> None:
    still = History(steps=[1, 2], losses=[3.0, 3.0], lrs=[0.0, 0.0])
    stopped = History(steps=[1, 2], losses=[3.0, 3.0], lrs=[0.0, 0.0], first_lr_sum=0.5)
    for histories in ([], [still], [still, stopped]):
        with pytest.raises(UserError, match="pooled law"):
            MultiPower().pooled(histories)


# ── anchoring ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_forecast_starts_at_the_level_now() -> None:
    """A run 0.3 nats above its law is forecast from where it is; without the anchor, where the law says."""
    lrs = schedule("cosine", 600)
    shifted = history_of(lrs)
    shifted = History(steps=shifted.steps, losses=shifted.losses + 0.3, lrs=lrs)
    now = MultiPower(law=LAW).fit(shifted).predict([600 + 1e-9], [lrs[-1]])
    assert now.mean[0] == pytest.approx(shifted.losses[-1], abs=1e-6)
    unanchored = MultiPower(law=LAW, anchored=False).fit(shifted).predict([600 + 1e-9], [lrs[-1]])
    assert unanchored.mean[0] == pytest.approx(shifted.losses[-1] - 0.3, abs=1e-4)
    assert unanchored.std[0] == pytest.approx(0.3, rel=0.01)  # it knows that it is off


def test_one_noisy_value_hardly_moves_the_anchor() -> None:
    history = history_of(schedule("constant", 600), noise=0.05)
    moved = history.losses.copy()
    moved[-1] += 0.5
    other = History(steps=history.steps, losses=moved, lrs=history.lrs)
    steps, lrs = 601 + np.arange(10), np.full(10, PEAK)
    difference = (
        MultiPower(law=LAW).fit(other).predict(steps, lrs).mean
        - MultiPower(law=LAW).fit(history).predict(steps, lrs).mean
    )
    assert np.abs(difference).max() < 0.1
    clean = MultiPower(law=LAW).fit(history_of(schedule("constant", 600))).predict(steps, lrs).mean
    assert np.abs(MultiPower(law=LAW).fit(history).predict(steps, lrs).mean - clean).max() < 0.03


# ── many long futures ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["cosine", "wsd", "step", "low step", "up again"])
@pytest.mark.parametrize("past", ["constant", "cosine"])
def test_long_futures_against_every_step(past: str, name: str) -> None:
    """Knots, gathered changes and the grid against the plain sum over all changes, in the middle and at the end."""
    seen, later = schedule(past, 1500), schedule(name, 2000)
    if past == "cosine":
        later = later * 0.1
    exact = losses_of(LAW, np.concatenate([seen, later]))
    forecast = MultiPower(law=LAW).fit(history_of(seen)).predict(1501 + np.arange(2000), later)
    np.testing.assert_allclose(forecast.mean, exact[1500:], atol=2e-3)
    np.testing.assert_allclose(forecast.mean[-1], exact[-1], atol=3e-4)


def test_short_futures_are_exact() -> None:
    seen, later = schedule("constant", 80), schedule("cosine", 40)
    exact = losses_of(LAW, np.concatenate([seen, later]))
    forecast = MultiPower(law=LAW).fit(history_of(seen)).predict(81 + np.arange(40), later)
    np.testing.assert_allclose(forecast.mean, exact[80:], atol=1e-9)


def test_sampled_rows_are_nearly_as_good_as_every_step() -> None:
    lrs = schedule("cosine", 2000)
    whole = history_of(lrs)
    rows = np.arange(9, 2000, 10)
    sampled = History(steps=whole.steps[rows], losses=whole.losses[rows], lrs=lrs[rows])
    steps, later = 2001 + np.arange(300), np.full(300, 2e-5)
    np.testing.assert_allclose(
        MultiPower(law=LAW).fit(sampled).predict(steps, later).mean,
        MultiPower(law=LAW).fit(whole).predict(steps, later).mean,
        atol=1e-3,
    )
