"""The law's say: the multi-power law of `curves`, asked for differences."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.made_models import history, telemetry
from trainenv.worldmodel import features
from trainenv.worldmodel.curves import History, MultiPower
from trainenv.worldmodel.curves.law_fit import CENTRE, Scale, curve, to_law
from trainenv.worldmodel.law_prior import COOLDOWN_SHARE, prior

SMOOTH = telemetry(120, loss=[3.0 * (step + 1) ** -0.1 for step in range(120)])


def ask(ln_lr: Any, **changes: Any) -> Any:
    columns, now = features.read(history(**{"rows": SMOOTH, "left": 200, "decision": 8, **changes}))
    return prior(columns, now, np.asarray(ln_lr, dtype=np.float64))


def test_no_change_of_the_learning_rate_no_difference() -> None:
    assert not ask(np.zeros((5, 4))).any()
    mixed = ask([[0, 0, 0, 0], [-0.2, 0, 0, 0], [0, 0, 0, 0]])
    assert not mixed[[0, 2]].any()
    assert mixed[1].all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([-0.3, 0.0, 0.1]), min_size=4, max_size=4))
def test_alike_is_answered_alike(row: list[float]) -> None:
    """What is asked once and what is asked many times over, among others."""
    alone = ask([row])
    many = ask([row, [0.1, 0, 0, 0], row, [0, 0, 0, -0.3], row])
    np.testing.assert_allclose(many[[0, 2, 4]], np.repeat(alone, 3, axis=0), rtol=1e-9, atol=1e-14)


def test_lowering_gains_at_once_and_costs_in_the_end() -> None:
    lower, higher = ask([[math.log(0.5), 0, 0, 0], [math.log(2), 0, 0, 0]])
    assert lower[0] < 0 < higher[0]  # noise of the optimizer falls with the rate
    assert lower[1] > lower[0]  # but after a cool-down there is less to gain, and less was learned
    assert higher[1] < higher[0]
    assert np.abs([lower, higher]).max() < 0.5


def test_a_later_change_does_less() -> None:
    now, later = ask([[-0.3, 0, 0, 0], [0, 0, 0, -0.3]])
    assert abs(later[0]) < abs(now[0])
    both = ask([[-0.3, 0, 0, -0.3]])[0]
    assert both[0] < min(now[0], later[0])


@pytest.mark.parametrize("steps", [[-0.4, 0, 0, 0], [0.2, 0, -0.5, 0], [0, 0, 0, 0.7]])
def test_it_is_the_law_of_curves_step_by_step(steps: list[float]) -> None:
    """Segments and gathered changes against every step by itself: a learning rate for each, one entry of the law each."""
    left, decision = 200, 8
    rows = history(rows=SMOOTH, left=left, decision=decision)
    columns, now = features.read(rows)
    measured = History(
        steps=columns["step"],
        losses=columns["loss"],
        lrs=columns["lr"],
        first_lr_sum=columns["lr"][0],
    )
    behind = curve(measured)
    law = to_law(
        CENTRE, Scale(behind.last_sum, behind.greatest_lr, float(columns["loss"][-8:].mean()))
    )
    fitted = law_of(law, measured)
    plain = np.asarray(rows.lrs_ahead)
    cooling = round(COOLDOWN_SHARE * (now.done + left))

    def scaled(rates: np.ndarray[Any, Any], factors: list[float]) -> np.ndarray[Any, Any]:
        scale = np.exp(np.cumsum(factors))[np.minimum(np.arange(len(rates)) // decision, 3)]
        return np.asarray(rates * scale)

    def down(rates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        line = 1 - (np.arange(cooling) + 0.5) / cooling
        return np.concatenate([rates[:32], rates[32 : 32 + cooling] * line])

    found = ask([steps], left=left, decision=decision)[0]
    tried, control = scaled(plain, steps), scaled(plain, [0, 0, 0, 0])
    for place, paths in enumerate(
        ((tried[:32], control[:32]), (down(tried), down(control)), (tried, control))
    ):
        one, other = (fitted(path) for path in paths)
        assert found[place] == pytest.approx(math.log(one / other), rel=0.1, abs=1e-3)
        assert found[place] * math.log(one / other) >= 0 or abs(found[place]) < 1e-3


def law_of(law: Any, measured: History) -> Any:
    """The law anchored at the loss now, as a function of the learning rates to come; each step by itself."""
    level = float(measured.losses[-8:].mean())
    lrs_behind = measured.lrs[int(np.argmax(measured.lrs)) :]

    def gained(lrs: np.ndarray[Any, Any]) -> float:
        """L after these learning rates, the warm-up left out as by `curve`."""
        first = float(measured.lr_sums[int(np.argmax(measured.lrs))])
        sums = first + np.cumsum(np.concatenate([[0.0], lrs[1:]]))
        drops = -np.diff(lrs)
        floor = np.maximum(lrs[1:], 1e-6 * lrs.max())
        since = sums[-1] - sums[:-1]
        gains = 1 - (1 + law.C * floor**-law.gamma * since) ** -law.beta
        return float(law.L0 + law.A * sums[-1] ** -law.alpha - law.B * (drops * gains).sum())

    start = gained(lrs_behind)
    return lambda ahead: level + gained(np.concatenate([lrs_behind, ahead])) - start


def test_at_the_end_of_a_run_the_horizon_is_the_end() -> None:
    """Where what is left is the horizon or less, the rate stays at its last value up to there."""
    for left in (1, 5, 31, 32, 33):
        found = ask([[-0.3, 0, 0, 0], [0, 0.1, 0, 0]], left=left, lrs_ahead=[5e-4] * left)
        assert np.isfinite(found).all()
        assert found[0, 0] == pytest.approx(found[0, 2], rel=0.1)
    short, long = (
        ask([[-0.3, 0, 0, 0]], left=left, lrs_ahead=[5e-4] * left)[0] for left in (32, 300)
    )
    assert short[0] == pytest.approx(long[0], rel=1e-9)
    assert short[2] != pytest.approx(long[2], rel=0.05)


def test_scaled_rates_and_losses_change_nothing() -> None:
    rows = [replace(t, lr=50 * t.lr, loss=0.3 * t.loss) for t in SMOOTH]
    scaled = ask(
        [[-0.3, 0, 0.2, 0]], rows=rows, lrs_ahead=[50 * 1e-3 * (1 - k / 200) for k in range(200)]
    )
    np.testing.assert_allclose(scaled, ask([[-0.3, 0, 0.2, 0]]), rtol=1e-6)


@pytest.mark.parametrize("row", [{"lr": 0.0}, {"lr": math.nan}, {"loss": 0.0}])
def test_without_a_rate_or_a_loss_there_is_no_law(row: dict[str, float]) -> None:
    assert not ask([[-0.3, 0, 0, 0]], rows=telemetry(40, **row)).any()


def test_what_a_fitted_law_says_points_the_same_way() -> None:
    """A run that follows the law: fitted to it, or only scaled to it, a lower rate has the same sign and size."""
    columns, now = features.read(history(rows=SMOOTH, left=200, decision=8))
    fitted = MultiPower().fit(
        History(
            steps=columns["step"],
            losses=columns["loss"],
            lrs=columns["lr"],
            first_lr_sum=columns["lr"][0],
        )
    )
    rates = np.stack([now.lrs_ahead, 0.7 * now.lrs_ahead])
    control, lower = fitted.predict(now.done + 1.0 + np.arange(200), rates).mean[:, 31]
    found = ask([[math.log(0.7), 0, 0, 0]])[0, 0]
    assert found * math.log(lower / control) > 0
    assert 0.2 < found / math.log(lower / control) < 5
