"""The cumulative sum of small rises: by its definition, deaf to one odd step, awake to ten that are a little high."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv import UncertaintyIndex
from trainenv.monitor.shift import Shift, bounded_sum


def made(memory: int = 16) -> Shift:
    return Shift(drift=0.5, limit=8.0, memory=memory)


def noise(steps: int, seed: int = 0) -> list[float]:
    return np.random.Generator(np.random.Philox(key=seed)).normal(size=steps).tolist()  # type: ignore[no-any-return]


def reference(values: list[float], looks: dict[int, float], memory: int) -> list[float]:
    mean, variance, total, sums = 0.0, 1.0, 0.0, []
    for n, value in enumerate(values):
        deviation, away = max(math.sqrt(variance), 0.25), value - mean
        if n >= 3 * memory:
            total += away / deviation - 0.5
            if n in looks:
                total += 2 * (min(6, max(-6, looks[n])) - 2)
            total = min(max(total, 0.0), 16.0)
        if n >= memory:
            away = min(3 * deviation, max(-3 * deviation, away))
        rate = max(1 / memory, 1 / (n + 2))
        mean, variance = mean + rate * away, variance + rate * (away * away - variance)
        sums.append(total / 8)
    return sums


def test_against_the_definition() -> None:
    values, looks = noise(400), {n: 0.9 * z for n, z in enumerate(noise(400, 1)) if n % 8 == 0}
    values[200:210] = [value + 1.5 for value in values[200:210]]
    looks[208] = 9.0
    shift = made()
    found = [shift.update(value, looks.get(n)) for n, value in enumerate(values)]
    assert found == pytest.approx(reference(values, looks, 16))
    assert max(found[200:212]) > 1


def test_ten_steps_that_are_a_little_high_are_a_shift_and_the_same_as_a_level_is_usual() -> None:
    shift = made(64)
    for value in noise(600, 2):
        shift.update(value, None)
    rise = [shift.update(value + 1.5, None) for value in noise(400, 3)]
    assert max(rise[:14]) >= 1
    assert max(rise[300:]) < 1


def test_one_odd_step_is_none() -> None:
    shift = made(64)
    for value in noise(600, 2):
        shift.update(value, None)
    assert shift.update(bounded_sum(100.0, 100.0), None) < 1


def test_a_look_that_is_far_out_is_enough_and_a_calm_one_takes_back() -> None:
    shift = made()
    for value in noise(100, 4):
        shift.update(value, None)
    shift.reset()
    assert shift.update(0.5, 100.0) >= 0.8
    assert shift.update(0.0, -100.0) == 0


def test_a_step_over_what_never_moved_is_no_rise_yet() -> None:
    shift = made()
    for _ in range(5000):
        shift.update(0.0, None)
    assert shift.update(0.5, None) < 0.25
    assert shift.update(4.0, None) <= 2


def test_nothing_before_there_is_history() -> None:
    shift = made()
    assert [shift.update(5.0 * (n % 5), 6.0) for n in range(48)] == [0.0] * 48
    assert shift.update(9.0, 6.0) > 0


@given(values=st.lists(st.floats(-200, 200), max_size=200))
@settings(max_examples=50, deadline=None)
def test_between_nothing_and_twice_the_limit(values: list[float]) -> None:
    shift = made(4)
    assert all(0 <= shift.update(value, value) <= 2 for value in values)


@pytest.mark.parametrize("cut", [0, 10, 60, 205])
def test_state_goes_on_exactly(cut: int) -> None:
    values = noise(300, 5)
    whole, first, second = made(), made(), made()
    expected = [whole.update(value, None) for value in values][cut:]
    for value in values[:cut]:
        first.update(value, None)
    second.load_state(first.state())
    assert [second.update(value, None) for value in values[cut:]] == expected


@pytest.mark.parametrize("only_loss", [True, False])
def test_the_index_hears_a_rise_within_the_noise_of_a_step(only_loss: bool) -> None:
    index, rng = UncertaintyIndex(), np.random.Generator(np.random.Philox(key=6))
    fired = []
    for step in range(1, 800):
        high = 700 <= step < 716
        norm = float(rng.lognormal(0.35 * high, 0.2))
        loss = 3 + 0.1 * rng.normal() + 0.2 * high
        reading = index.update(loss=loss) if only_loss else index.update(loss=loss, grad_norm=norm)
        fired += [step] if reading.fired else []
    assert fired
    assert all(700 < step < 720 for step in fired)
