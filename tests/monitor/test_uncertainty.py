"""The uncertainty index: what it is made of, when it fires, when it keeps quiet."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trainenv
from trainenv.config.presets import find, read_yaml
from trainenv.config.schema import UncertaintyConfig
from trainenv.monitor import UncertaintyIndex
from trainenv.types import Reading, Telemetry


def telemetry(step: int, loss: float = 3.0, grad_norm: float = 1.0, **more: Any) -> Telemetry:
    known: dict[str, Any] = {field.name: 0.0 for field in fields(Telemetry)[:15]}
    known |= {"step": step, "loss": loss, "grad_norm": grad_norm, "clip": "none", **more}
    return Telemetry(**known)


def index(**changes: Any) -> UncertaintyIndex:
    return UncertaintyIndex(UncertaintyConfig(**{**read_yaml(find("uncertainty")), **changes}))


def history(steps: int, seed: int = 0, probe_every: int = 8) -> list[Telemetry]:
    """A calm run: a falling, noisy loss, log-normal gradient norms and a probe now and then."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    calm = []
    for step in range(1, steps + 1):
        probe: dict[str, float] = {}
        if step % probe_every == 1:
            names = (
                "probe_loss",
                "attention_entropy",
                "activation_entropy",
                "embedding_rms",
                "shortcut_ratio",
            )
            probe = dict(zip(names, (0.7 + rng.normal(0, 0.01, 5)).tolist()))
        calm.append(
            telemetry(
                step,
                2 + 3 * math.exp(-step / 200) + rng.normal(0, 0.05),
                float(rng.lognormal(0, 0.2)),
                **probe,
            )
        )
    return calm


def fired(made: UncertaintyIndex, values: list[float], start: int = 1000) -> list[int]:
    """The steps at which it fires when the index itself (all axes alike) takes these values from `start` on."""
    readings = {
        start + n: made._read(start + n, volatility=v, entropy=v, disagreement=v)
        for n, v in enumerate(values)
    }
    return [step for step, reading in readings.items() if reading.fired]


def test_public_name() -> None:
    assert trainenv.UncertaintyIndex is UncertaintyIndex
    assert UncertaintyIndex().config == index().config


# ── the number ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(axes=st.tuples(*[st.floats(0, 10)] * 3), weights=st.tuples(*[st.floats(0.1, 5)] * 3))
def test_the_index_is_the_weighted_mean_of_the_axes(
    axes: tuple[float, ...], weights: tuple[float, ...]
) -> None:
    names = ("volatility", "entropy", "disagreement")
    reading = index(weights=dict(zip(names, weights)))._read(1000, **dict(zip(names, axes)))
    assert (reading.volatility, reading.entropy, reading.disagreement) == axes
    assert reading.index == pytest.approx(float(np.average(axes, weights=weights)))


def test_weights_by_default() -> None:
    for name, weight in {"volatility": 0.5, "entropy": 0.3, "disagreement": 0.2}.items():
        axes = {"volatility": 0.0, "entropy": 0.0, "disagreement": 0.0, name: 10.0}
        assert index()._read(1000, **axes).index == pytest.approx(10 * weight)


def test_zero_while_there_is_too_little_history() -> None:
    made = index(min_history=64)
    for step in range(1, 60):
        reading = made.update(
            telemetry(step, loss=3.0 + 50 * (step % 7 == 0), grad_norm=10.0 ** (step % 3))
        )
        assert (reading.volatility, reading.disagreement, reading.index, reading.fired) == (
            0,
            0,
            0,
            False,
        )


def test_threshold_starts_lenient_and_falls_in_a_line() -> None:
    made = index(lenient=2.0, lenient_steps=200)
    found = [
        made._read(step, volatility=0.0, entropy=0.0, disagreement=0.0).threshold
        for step in (0, 50, 100, 199, 200, 5000)
    ]
    assert found == pytest.approx([5.0, 4.375, 3.75, 2.5 * (2 - 199 / 200), 2.5, 2.5])


def test_no_leniency_where_there_are_no_lenient_steps() -> None:
    assert (
        index(lenient_steps=0)._read(0, volatility=0.0, entropy=0.0, disagreement=0.0).threshold
        == 2.5
    )


# ── firing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.6, 2.6, 2.6], [1002]),
        ([2.5, 2.5, 2.5], [1002]),
        ([2.6, 2.6, 0, 2.6, 2.6], []),
        ([2.6, 2.6, 2.4, 2.6, 2.6, 2.6], [1005]),
        ([0, 3.3], [1001]),
        ([3.1, 3.1], []),
        ([2.4] * 50, []),
        ([9.0], [1000]),
    ],
)
def test_three_in_a_row_or_one_far_out(values: list[float], expected: list[int]) -> None:
    assert fired(index(), values) == expected


def test_silent_for_the_refractory_steps_and_not_longer() -> None:
    assert fired(index(refractory=50), [9.0] * 160) == [1000, 1051, 1102, 1153]
    assert fired(index(refractory=0), [9.0] * 3) == [1000, 1001, 1002]
    assert fired(index(refractory=0), [2.6] * 7) == [1002, 1005]


def test_after_silence_an_alarm_still_needs_its_three() -> None:
    values = [9.0] + [0.0] * 50 + [2.6, 2.6, 2.6]
    assert fired(index(refractory=50), values) == [1000, 1053]


def test_early_it_takes_more() -> None:
    assert fired(index(), [3.3, 0, 3.3, 0], start=1) == []
    assert fired(index(), [2.6] * 10, start=1) == []
    assert fired(index(), [6.5], start=1) == [1]
    assert fired(index(), [5.0] * 3, start=1) == [3]
    assert fired(index(), [3.3], start=300) == [300]


@given(
    values=st.lists(st.sampled_from([0.0, 2.4, 2.6, 3.3]), max_size=80),
    consecutive=st.integers(1, 5),
    refractory=st.integers(0, 20),
)
def test_firing_by_its_rule(values: list[float], consecutive: int, refractory: int) -> None:
    expected, running, silent_until = [], 0, 0
    for step, value in enumerate(values, 1000):
        running = running + 1 if value >= 2.5 else 0
        if (running >= consecutive or value >= 3.2) and step > silent_until:
            expected.append(step)
            running, silent_until = 0, step + refractory
    assert fired(index(consecutive=consecutive, refractory=refractory), values) == expected


# ── from telemetry ──────────────────────────────────────────────────────────────────────────────────────────────────


def calm_index(steps: int = 400, **changes: Any) -> UncertaintyIndex:
    made = index(**changes)
    for t in history(steps):
        made.update(t)
    return made


def test_a_calm_run_never_fires() -> None:
    made = index()
    readings = [made.update(t) for t in history(800)]
    assert not any(reading.fired for reading in readings)
    assert all(math.isfinite(reading.index) and 0 <= reading.index <= 10 for reading in readings)
    assert max(reading.index for reading in readings[200:]) > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_fires(bad: float) -> None:
    reading = calm_index().update(telemetry(401, loss=bad))
    assert reading.fired
    assert reading.volatility == 6.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_fires(bad: float) -> None:
    made = calm_index()
    readings = [made.update(telemetry(401 + n, loss=2.4, grad_norm=bad)) for n in range(3)]
    assert any(reading.fired for reading in readings)
    assert readings[0].volatility == 6.0


@pytest.mark.parametrize("axis", ["volatility", "entropy", "disagreement"])
def test_no_axis_fires_quite_alone_on_a_single_step(axis: str) -> None:
    axes = {"volatility": 0.0, "entropy": 0.0, "disagreement": 0.0, axis: 6.0}
    assert not index()._read(1000, **axes).fired


def test_a_loss_that_is_never_finite_fires_even_at_the_start() -> None:
    made = index()
    assert any(
        made.update(telemetry(step, loss=math.nan, grad_norm=math.nan)).fired
        for step in range(1, 10)
    )


def test_a_spike_of_the_loss_fires_and_the_next_one_too() -> None:
    made = calm_index()
    first = [made.update(telemetry(401 + n, loss=9.0, grad_norm=40.0)) for n in range(3)]
    assert any(reading.fired for reading in first)
    rng = np.random.Generator(np.random.Philox(key=8))
    for step in range(404, 470):
        assert not made.update(
            telemetry(step, 2.3 + rng.normal(0, 0.05), float(rng.lognormal(0, 0.2)))
        ).fired
    again = [made.update(telemetry(470 + n, loss=9.0, grad_norm=40.0)) for n in range(3)]
    assert any(reading.fired for reading in again)


def test_good_news_is_not_alarming() -> None:
    made = calm_index()
    made.update(telemetry(401, loss=2.4, grad_norm=1.0, probe_loss=0.1))
    reading = made.update(telemetry(402, loss=0.5, grad_norm=1e-3))
    assert reading.volatility == 0.0


@pytest.mark.parametrize("signal", ["loss", "grad_norm", "probe_loss"])
def test_each_signal_alone_raises_volatility(signal: str) -> None:
    usual: dict[str, float] = {"loss": 2.4, "grad_norm": 1.0, "probe_loss": 0.7}
    reading = calm_index().update(telemetry(401, **{**usual, signal: 500.0}))
    assert reading.volatility == 6.0


def test_a_gradient_of_zero_is_a_number() -> None:
    assert math.isfinite(calm_index().update(telemetry(401, loss=2.4, grad_norm=0.0)).index)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("signal", ["attention_entropy", "activation_entropy", "shortcut_ratio"])
def test_what_goes_on_inside_counts_in_both_directions(signal: str, sign: int) -> None:
    usual = dict.fromkeys(("attention_entropy", "activation_entropy", "shortcut_ratio"), 0.7)
    made = calm_index()
    before = made.update(telemetry(401, 2.4, **usual)).entropy
    reading = made.update(telemetry(402, 2.4, **{**usual, signal: 0.7 + sign * 5.0}))
    assert reading.entropy == 6.0
    assert before < 3


def test_between_looks_the_last_look_holds() -> None:
    made = calm_index()
    looked = made.update(
        telemetry(401, 2.4, attention_entropy=0.9, activation_entropy=0.7, shortcut_ratio=0.7)
    ).entropy
    assert looked > 0
    assert made.update(telemetry(402, 2.4)).entropy == looked


def test_without_a_probe_there_is_no_entropy() -> None:
    made = index()
    assert all(
        made.update(telemetry(t.step, t.loss, t.grad_norm)).entropy == 0.0 for t in history(200)
    )


number = st.one_of(st.floats(width=32), st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e30]))


@given(values=st.lists(st.tuples(number, number, number, number), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_always_a_reading(values: list[tuple[float, float, float, float]]) -> None:
    made = calm_index(100)
    for step, (loss, norm, probe, entropy) in enumerate(values, 101):
        bounded = max(min(loss, 1e6), -1e6)
        reading = made.update(
            telemetry(step, bounded, abs(norm), probe_loss=probe, attention_entropy=entropy)
        )
        assert isinstance(reading, Reading)
        assert isinstance(reading.fired, bool)
        for axis in (reading.volatility, reading.entropy, reading.disagreement):
            assert 0 <= axis <= 6
        assert 0 <= reading.index <= (6 if math.isfinite(bounded) else 100)


@pytest.mark.parametrize("cut", [0, 3, 70, 250])
def test_state_goes_on_exactly(cut: int) -> None:
    steps = history(320)
    for n, loss in {100: math.nan, 251: 9.0, 252: 8.0, 253: 8.0, 290: 9.0}.items():
        steps[n] = telemetry(n + 1, loss=loss, grad_norm=30.0)
    whole, first, second = index(), index(), index()
    expected = [whole.update(t) for t in steps][cut:]
    for t in steps[:cut]:
        first.update(t)
    for t in history(90, seed=5):
        second.update(t)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.update(t) for t in steps[cut:]] == expected
    assert any(reading.fired for reading in expected)


def test_state_is_shared_with_nobody() -> None:
    made = calm_index(100)
    state = made.state_dict()
    before = json.dumps(state)
    other = index()
    other.load_state_dict(state)
    for t in history(140)[100:]:
        made.update(t)
        other.update(t)
    assert json.dumps(state) == before
