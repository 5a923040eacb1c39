"""A loss that is not finite is an alarm at any time; one odd step is one odd step, and leaves no trace in what is usual."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainenv import UncertaintyIndex
from trainenv.types import Reading, Telemetry


def telemetry(step: int, loss: float, grad_norm: float = 1.0) -> Telemetry:
    return Telemetry(
        step, step, 8, loss, grad_norm, 1.0, math.inf, 0.0, "none", 0.1, 1.0, 0.1, 1.0, -1, 0.0
    )


@pytest.mark.parametrize("step", [1, 30, 88, 500])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_lost_run_fires_at_once(step: int, loss: float) -> None:
    index = UncertaintyIndex()
    quiet = [index.update(telemetry(k, 3 + 0.1 * math.sin(k))) for k in range(1, step)]
    assert not any(reading.fired for reading in quiet)
    assert index.update(telemetry(step, loss)).fired


def calm(steps: int) -> list[tuple[float, float]]:
    rng = np.random.Generator(np.random.Philox(key=0))
    return [(3 + 0.1 * rng.normal(), float(rng.lognormal(0, 0.2))) for _ in range(steps)]


def readings(
    index: UncertaintyIndex, values: list[tuple[float, float]], start: int = 1
) -> list[Reading]:
    return [index.update(telemetry(step, *pair)) for step, pair in enumerate(values, start)]


def fired(found: list[Reading], start: int = 1) -> list[int]:
    return [step for step, reading in enumerate(found, start) if reading.fired]


@pytest.mark.parametrize("at", [1, 40, 70, 300])
@pytest.mark.parametrize("grad_norm", [0.0, math.nan, math.inf, 1.0, 1e30])
def test_what_follows_a_lost_step_reads_as_if_it_had_not_been(at: int, grad_norm: float) -> None:
    values = calm(600)
    plain = readings(UncertaintyIndex(), values[: at - 1] + values[at:])
    index = UncertaintyIndex()
    odd = readings(index, [*values[: at - 1], (math.nan, grad_norm), *values[at:]])
    assert fired(odd) == [at]
    assert odd[at - 1].index == 100
    names = ("volatility", "entropy", "disagreement", "index")
    for name in names:
        assert [getattr(r, name) for r in odd[at:]] == [getattr(r, name) for r in plain[at - 1 :]]


def test_a_stretch_of_losses_that_are_lost_is_one_alarm_and_for_ever_is_one_a_silence() -> None:
    values = calm(400)
    stretch = [*values[:200], *[(math.nan, math.nan)] * 10, *values[200:]]
    assert fired(readings(UncertaintyIndex(), stretch)) == [201]
    ever = [*values[:200], *[(math.nan, math.nan)] * 120]
    assert fired(readings(UncertaintyIndex(), ever)) == [201, 252, 303]


def test_a_lost_step_now_and_then_hides_no_other_alarm() -> None:
    values = [(math.nan, 0.0) if step % 40 == 0 else pair for step, pair in enumerate(calm(700))]
    values[610:616] = [(9.0, 30.0)] * 6
    found = fired(readings(UncertaintyIndex(), values))
    assert any(610 < step <= 616 for step in found)


@pytest.mark.parametrize("start", [100, 400])
@pytest.mark.parametrize("odd", [(8.0, 1.0), (3.0, 60.0), (8.0, 60.0), (1e6, 1e6), (3.0, math.inf)])
def test_one_odd_step_does_not_fire(odd: tuple[float, float], start: int) -> None:
    values = calm(700)
    values[start] = odd
    assert fired(readings(UncertaintyIndex(), values)) == []


def test_a_spike_of_the_loss_is_no_new_habit_of_the_forecasters() -> None:
    values = calm(500)
    plain = readings(UncertaintyIndex(), values)
    spiked = readings(UncertaintyIndex(), [*values[:300], (1e6, 1.0), *values[301:]])
    assert (
        max(reading.disagreement for reading in spiked[320:])
        < max(r.disagreement for r in plain[100:]) + 1.5
    )
    late = [
        *values[:300],
        (1e6, 1.0),
        *values[301:380],
        *[(3.0 + 0.5 * k, 1.0) for k in range(1, 9)],
    ]
    assert any(step > 380 for step in fired(readings(UncertaintyIndex(), late)))
