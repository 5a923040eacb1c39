"""The regression trigger: silent while a run falls or only wobbles, in words when it is worse and stays so."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.monitor.harm import Harm
from trainenv.monitor.regression import Regression, RegressionTrigger
from trainenv.types import Telemetry, UserError

Losses = st.lists(st.floats(0.01, 20.0), min_size=1, max_size=40)


def looked(
    losses: Sequence[float], trigger: RegressionTrigger | None = None, start: int = 0
) -> list[str]:
    trigger = trigger or RegressionTrigger()
    return [trigger.validated(100 * (start + place), loss) for place, loss in enumerate(losses)]


def fired(losses: Sequence[float], trigger: RegressionTrigger | None = None) -> list[int]:
    return [place for place, reason in enumerate(looked(losses, trigger)) if reason]


def telemetry(step: int, probe: float, loss: float = 2.0) -> Telemetry:
    return Telemetry(
        step,
        step,
        8,
        loss,
        1.0,
        1.0,
        math.inf,
        0.0,
        "none",
        0.1,
        1.0,
        0.1,
        1.0,
        -1,
        0.0,
        probe_loss=probe,
    )


def spiked(steps: int, spikes: Sequence[int], every: int = 8) -> list[Telemetry]:
    """A calm run at 2.0 with a look every few steps, at 3.0 for 24 steps from each spike on."""
    steps_of = range(1, steps + 1)
    raised = {step + more for step in spikes for more in range(24)}
    return [
        telemetry(s, (3.0 if s in raised else 2.0) if s % every == 1 else math.nan)
        for s in steps_of
    ]


# ── validation ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(losses=Losses)
def test_a_loss_that_only_falls_never_fires(losses: list[float]) -> None:
    assert fired(sorted(losses, reverse=True)) == []


@given(losses=Losses, last=st.floats(0.01, 20.0))
def test_never_where_no_look_is_above_the_last_that_was_not_worse(
    losses: list[float], last: float
) -> None:
    """Whatever the trend leads to expect, better than the look before is not worse."""
    trigger = RegressionTrigger()
    looked(sorted(losses, reverse=True), trigger)
    better = min(last, min(losses))
    assert trigger.validated(10**6, better) == trigger.validated(10**6 + 1, better) == ""


def test_a_jump_that_stays_fires_at_its_second_look() -> None:
    losses = [math.exp(1.0 - 0.01 * place) for place in range(10)]
    assert fired([*losses, losses[-1] * 1.02, losses[-1] * 1.02]) == [11]
    reason = looked([*losses, losses[-1] * 1.02, losses[-1] * 1.03])[-1]
    assert reason == (
        "validation loss at step 1100 is 3 % above the expected one: 14.8 σ, the second consecutive evaluation above 1.5 σ"
    )


def test_one_odd_look_is_forgotten() -> None:
    calm, odd = [2.0] * 10, [2.0] * 10
    odd[7] = 3.0
    assert fired(odd) == []
    # It has left no trace either: what follows is judged as if it had not been.
    assert looked([*odd, 2.02, 2.02])[-1] == looked([*calm, 2.02, 2.02])[-1] != ""
    assert fired([*calm, 2.5, 2.0, 2.5, 2.0, 2.5]) == []


def test_silent_until_there_is_enough_to_compare_with() -> None:
    assert fired([1.0, 2.0, 1.0, 2.0, 3.0, 9.0]) == []
    for least in (2, 4, 6):
        trigger = RegressionTrigger(Regression(least=least, window=8))
        assert fired([2.0] * (least + 1) + [3.0, 3.0], trigger) == [least + 2]
        assert (
            fired([2.0] * least + [3.0, 3.0], RegressionTrigger(Regression(least=least, window=8)))
            == []
        )


def test_the_limit_is_that_of_the_definition() -> None:
    rng = np.random.Generator(np.random.Philox(key=1))
    for _ in range(50):
        x = (1.0 - 0.005 * np.arange(12) + 0.01 * rng.standard_normal(12)).tolist()
        trigger = RegressionTrigger(Regression(sigmas=2.0, window=8, times=1))
        # Of the last 9 looks at most: those that it has itself found worse would be lifted, so only calm series count.
        if fired([math.exp(v) for v in x], trigger):
            continue
        last = x[-9:]
        changes = [b - a for a, b in pairwise(last)]
        trend = (last[-1] - last[0]) / 8
        expected = max(last[-1], median(v + trend * (8 - place) for place, v in enumerate(last)))
        limit = expected + 2.0 * max(0.002, stdev(changes))
        state = trigger.state_dict()
        assert trigger.validated(5000, math.exp(limit - 1e-6)) == ""
        trigger.load_state_dict(state)
        assert trigger.validated(5000, math.exp(limit + 1e-6)) != ""


def test_below_the_floor_nothing_is_worse() -> None:
    x = [math.exp(0.5)] * 8
    assert fired([*x, math.exp(0.5 + 0.0029), math.exp(0.5 + 0.0029)]) == []
    assert fired([*x, math.exp(0.5 + 0.0031), math.exp(0.5 + 0.0031)]) == [9]
    assert fired([*x, 1.9, 1.9], RegressionTrigger(Regression(floor=0.1))) == []


def test_the_new_height_is_what_is_compared_with_from_then_on() -> None:
    assert fired([2.0] * 8 + [2.2] * 12) == [9]
    assert fired([2.0] * 8 + [2.2] * 6 + [2.4] * 4) == [9, 15]
    # The first rise is no part of σ: the next may be much smaller.
    assert fired([2.0] * 8 + [2.2] * 6 + [2.22] * 4) == [9, 15]
    # Falling again from the new height is no alarm, and a rise after it is one.
    falling = [2.2 * math.exp(-0.004 * place) for place in range(10)]
    assert fired([2.0] * 8 + falling) == [9]
    assert fired([2.0] * 8 + falling + [2.4, 2.4]) == [9, 19]


@given(before=st.integers(6, 12), back=st.integers(1, 6), losses=Losses)
@settings(max_examples=60)
def test_a_rewind_forgets_what_it_left_behind(before: int, back: int, losses: list[float]) -> None:
    """Up to the looks that are kept at all: what follows is judged as if the run had never been there."""
    calm = [2.0 + 0.01 * (place % 3) for place in range(before)]
    straight, rewound = RegressionTrigger(), RegressionTrigger()
    looked(calm[:-back], straight)
    looked([*calm, 3.0, 3.0, 3.0], rewound)
    assert fired([*calm, 3.0, 3.0, 3.0]) == [before + 1]
    assert looked(losses, straight, before - back) == looked(losses, rewound, before - back)
    assert straight.state_dict() == rewound.state_dict()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_a_loss_that_is_lost_fires_at_once(bad: float) -> None:
    trigger = RegressionTrigger()
    assert (
        trigger.validated(0, bad)
        == f"validation loss at step 0 is not a finite number above 0: {bad}"
    )
    assert fired([2.0] * 9, trigger) == []
    json.dumps(trigger.state_dict(), allow_nan=False)


def test_of_noise_about_a_falling_curve_it_seldom_fires() -> None:
    rng = np.random.Generator(np.random.Philox(key=2))
    curves = [2.0 + 4.0 * np.exp(-np.arange(60) / 15) for _ in range(40)]
    false = sum(
        len(fired((curve * np.exp(0.003 * rng.standard_normal(60))).tolist())) for curve in curves
    )
    assert false <= 24  # 1 % of 2400 looks
    hits = 0
    for curve in curves:
        noisy = curve * np.exp(0.003 * rng.standard_normal(60))
        noisy[50:] *= 1.03
        hits += any(place in (51, 52) for place in fired(noisy.tolist()))
    assert hits >= 36


@given(losses=st.lists(st.floats(5e-324, 1.7e308), max_size=30))
def test_bounded_whatever_comes(losses: list[float]) -> None:
    looked(losses, trigger := RegressionTrigger())
    json.dumps(trigger.state_dict(), allow_nan=False)


# ── instability ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_event_is_not_a_rate_and_two_are() -> None:
    assert RegressionTrigger().windowed(spiked(900, [601])) == ""
    assert RegressionTrigger().windowed(spiked(900, [601, 701])) == (
        "2 instability events in the last 250 steps, 8.0 in 1000, against 0.0 before them"
    )


def test_nothing_to_compare_with_yet() -> None:
    assert RegressionTrigger().windowed(spiked(400, [101, 201, 301])) == ""
    assert RegressionTrigger(Regression(baseline=50)).windowed(spiked(400, [101, 201, 301])) != ""


@pytest.mark.parametrize(("rate", "fires"), [(1.24, True), (1.25, False), (1.26, False)])
def test_a_quarter_above_the_rate_before(rate: float, fires: bool) -> None:
    """4 events in 1000 steps before, 5 in the last 1000: 25 % more and no more than that."""
    run = spiked(2000, [101, 301, 501, 701, 1101, 1301, 1501, 1701, 1901])
    config = Regression(rate=rate, recent=1000, baseline=1000, chance=0.0)
    assert bool(RegressionTrigger(config).windowed(run)) is fires


def test_after_firing_what_is_recent_begins_anew() -> None:
    trigger = RegressionTrigger()
    run = spiked(2000, [601, 701, 801, 1501, 1601])
    reasons = [(one.step, trigger.windowed([one])) for one in run]
    # The third event comes alone after the firing; the last two are again more than the three in 1350 steps before.
    assert [step for step, reason in reasons if reason] == [713, 1609]


def test_calm_runs_and_runs_that_are_as_bad_as_ever_never_fire() -> None:
    assert RegressionTrigger().windowed(spiked(3000, [])) == ""
    bad = spiked(4000, range(101, 4000, 100))
    assert RegressionTrigger(Regression(recent=500, baseline=500)).windowed(bad) == ""
    assert RegressionTrigger(Regression(recent=500, baseline=500, chance=0.0)).windowed(bad) != ""


@pytest.mark.parametrize(("more", "fires"), [(4, False), (6, False), (7, False), (8, True)])
def test_more_than_chance_makes_of_the_old_rate(more: int, fires: bool) -> None:
    """4 events before: 8 are the first count above 4 + 1.5 · √4."""
    run = spiked(2000, [101, 301, 501, 701, *range(1041, 1041 + 80 * more, 80)])
    assert bool(RegressionTrigger(Regression(recent=1000, baseline=1000)).windowed(run)) is fires


def test_harm_is_as_configured() -> None:
    run = spiked(900, [601, 701])
    assert RegressionTrigger(Regression(harm=Harm(rise=1.1))).windowed(run) == ""
    assert RegressionTrigger(Regression(harm=Harm(hold=16))).windowed(run) != ""
    assert RegressionTrigger(Regression(harm=Harm(hold=17))).windowed(run) == ""


def test_what_a_rewind_left_behind_was_taken_all_the_same() -> None:
    run = spiked(700, [601])
    again = [telemetry(one.step, one.probe_loss) for one in run[560:]]
    assert RegressionTrigger().windowed([*run, *again]) != ""
    assert RegressionTrigger().windowed(run) == ""


@given(cuts=st.lists(st.integers(0, 900), max_size=6))
@settings(max_examples=30)
def test_however_the_windows_are_cut_and_the_state_is_carried(cuts: list[int]) -> None:
    run = spiked(900, [601, 701, 741])
    trigger, reasons = RegressionTrigger(), []
    ends = [*sorted(cuts), 900]
    for start, end in pairwise([0, *ends]):
        reasons.append(trigger.windowed(run[start:end]))
        looked([2.0, 2.1], trigger, start // 100)
        state = json.loads(json.dumps(trigger.state_dict(), allow_nan=False))
        trigger = RegressionTrigger()
        trigger.load_state_dict(state)
        assert trigger.state_dict() == state
    assert [reason for reason in reasons if reason] == [RegressionTrigger().windowed(run)]


@pytest.mark.parametrize("cut", range(0, 24, 3))
def test_the_state_goes_on_exactly(cut: int) -> None:
    losses = [2.0] * 8 + [2.2] * 6 + [2.4] * 10
    whole, first, second = RegressionTrigger(), RegressionTrigger(), RegressionTrigger()
    expected = looked(losses, whole)
    assert looked(losses[:cut], first) == expected[:cut]
    looked([9.0] * 7, second)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert looked(losses[cut:], second, cut) == expected[cut:]
    assert second.state_dict() == whole.state_dict()


def test_the_state_does_not_grow() -> None:
    trigger = RegressionTrigger()
    sizes = []
    for start in range(0, 9000, 3000):
        shifted = [
            telemetry(start + one.step, one.probe_loss)
            for one in spiked(3000, range(101, 3000, 100))
        ]
        trigger.windowed(shifted)
        looked([2.0] * 100, trigger, start)
        sizes.append(len(json.dumps(trigger.state_dict())))
    assert sizes[2] < 1.1 * sizes[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sigmas": 0.0},
        {"times": 0},
        {"least": 1},
        {"least": 9},
        {"floor": 0.0},
        {"rate": 0.9},
        {"recent": 0},
        {"events": 0},
        {"chance": -1},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="regression needs sigmas and floor above 0"):
        Regression(**wrong)  # type: ignore[arg-type]
