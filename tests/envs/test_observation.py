"""The observation: every feature documented, each formula checked by hand, all of it finite whatever happens."""

from __future__ import annotations

import inspect
import math
import re
import statistics
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.envs.observation import BOUND, FEATURES, Features, Situation, observe
from trainenv.types import CLIP_NAMES, Reading, Telemetry

SITUATION = Situation(
    reference=math.log(256),
    base_lr=3e-3,
    decision_steps=25,
    budget_left=0.75,
    validation=2.5,
    validation_before=2.7,
    gradient_before=0.8,
    flagged=False,
)


def step(**values: Any) -> Telemetry:
    known: dict[str, Any] = {
        "step": 10,
        "data_index": 9,
        "tokens": 128,
        "loss": 3.0,
        "grad_norm": 1.0,
        "grad_norm_clipped": 1.0,
        "clip_threshold": 2.0,
        "clip_score": 0.0,
        "clip": "zclip",
        "lr": 3e-3,
        "lr_scale": 1.0,
        "weight_decay": 0.1,
        "weight_decay_scale": 1.0,
        "steps_since_reset": -1,
        "progress": 0.25,
    }
    return Telemetry(**known | values)


def series(name: str, values: list[float]) -> list[Telemetry]:
    return [step(**{name: value}) for value in values]


def seen(window: list[Telemetry], **now: Any) -> Features:
    return observe(window, replace(SITUATION, **now))


# ── the form ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_feature_is_documented_once_and_in_order() -> None:
    text = inspect.getdoc(Features) or ""
    described = re.findall(r"^ {4}([a-z_, ]+):", text.split("Attributes:")[1], flags=re.MULTILINE)
    assert (
        tuple(name for line in described for name in line.split(", "))
        == FEATURES
        == tuple(f.name for f in fields(Features))
    )


def test_the_vector_is_the_features_in_order() -> None:
    vector = seen([step()]).vector()
    assert vector.shape == (32,)
    assert vector.dtype == np.float32
    features = seen([step()])
    for name, value in zip(FEATURES, vector):
        raw = getattr(features, name)
        assert value == (0 if math.isnan(raw) else np.float32(raw))


def test_the_vector_is_clipped() -> None:
    values = dict.fromkeys(FEATURES, 0.0) | {
        "loss": 1e9,
        "lr": -1e9,
        "gradient": math.nan,
        "index": math.inf,
        "lr_scale": -math.inf,
    }
    vector = dict(zip(FEATURES, Features(**values).vector().tolist()))
    assert {name: vector[name] for name in ("loss", "lr", "gradient", "index", "lr_scale")} == {
        "loss": BOUND,
        "lr": -BOUND,
        "gradient": 0,
        "index": BOUND,
        "lr_scale": -BOUND,
    }


# ── the formulas ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_situation_tells() -> None:
    features = seen([step(progress=0.1), step(progress=0.4)], flagged=True)
    assert features.progress == 0.4
    assert features.budget_left == 0.75
    assert features.validation == pytest.approx(math.log(2.5) - math.log(math.log(256)))
    assert features.validation_fall == pytest.approx(10 * (math.log(2.7) - math.log(2.5)))
    assert features.flagged == 1
    assert seen([step()]).flagged == 0


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("loss", [0.01, 2.0, 9.0])
def test_a_steady_loss(loss: float, count: int) -> None:
    features = seen([step(loss=loss, probe_loss=1.3)] * count)
    assert features.loss == pytest.approx(math.log(loss / math.log(256)))
    assert features.probe_gap == pytest.approx(math.log(1.3 / loss))
    assert features.loss_slope == pytest.approx(0, abs=1e-9)
    assert features.loss_spread == pytest.approx(0, abs=1e-9)
    assert features.loss_peak == pytest.approx(0, abs=1e-12)


def test_the_loss_s_slope_and_spread() -> None:
    losses = [3.0, 2.7, 2.9, 2.2, 2.4, 2.0]
    logs = [math.log(loss) for loss in losses]
    slope, offset = np.polyfit(range(6), logs, 1)
    residuals = [value - (offset + slope * place) for place, value in enumerate(logs)]
    features = seen(series("loss", losses))
    assert features.loss_slope == pytest.approx(
        10 * 5 * slope
    )  # over the five steps from first to last
    assert features.loss_spread == pytest.approx(10 * statistics.pstdev(residuals))


@pytest.mark.parametrize("count", [3, 4, 25])
def test_an_exponential_fall_is_all_slope(count: int) -> None:
    features = seen(
        series("loss", [3 * math.exp(-0.2 * place / (count - 1)) for place in range(count)])
    )
    assert features.loss_slope == pytest.approx(-2)
    assert features.loss_spread == pytest.approx(0, abs=1e-6)


def test_peaks_are_over_the_mean() -> None:
    values = [1.0, 2.0, 9.0]
    assert seen(series("loss", values)).loss_peak == pytest.approx(math.log(9 / 4))
    assert seen(series("grad_norm", values)).gradient_peak == pytest.approx(math.log(9 / 4))


def test_gradients() -> None:
    assert seen([step(grad_norm=2.0)] * 3).gradient == pytest.approx(math.log(2.0 / 0.8))
    assert seen([step(grad_norm=2.0)] * 3, gradient_before=2.0).gradient == pytest.approx(0)
    assert math.isnan(seen([step(grad_norm=2.0)], gradient_before=math.nan).gradient)
    norms = [(1.0, 1.0), (3.0, 1.0), (math.inf, 0.0), (math.nan, 0.0), (1.0, 1.0 + 1e-9)]
    window = [step(grad_norm=norm, grad_norm_clipped=clipped) for norm, clipped in norms]
    assert seen(window).clipped == pytest.approx(3 / 5)


def test_what_is_in_force_is_the_last_step_s() -> None:
    first = step(lr=1.0, lr_scale=5.0, weight_decay_scale=4.0, clip="arc", steps_since_reset=1)
    features = seen(
        [
            first,
            step(
                lr=1.5e-3, lr_scale=0.8, weight_decay_scale=2.0, clip="spam", steps_since_reset=10
            ),
        ]
    )
    assert features.lr == pytest.approx(math.log(0.5))
    assert features.lr_scale == pytest.approx(math.log(0.8))
    assert features.weight_decay_scale == pytest.approx(math.log(2))
    assert [getattr(features, f"clip_{name}") for name in CLIP_NAMES] == [0, 0, 0, 1]
    assert features.reset_recency == pytest.approx(math.exp(-10 / 25))


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_one_policy_is_in_force(name: str) -> None:
    features = seen([step(clip=name)])
    assert {clip: getattr(features, f"clip_{clip}") for clip in CLIP_NAMES} == {
        clip: float(clip == name) for clip in CLIP_NAMES
    }


def test_reset_recency() -> None:
    assert seen([step(steps_since_reset=-1)]).reset_recency == 0
    assert seen([step(steps_since_reset=0)]).reset_recency == 1
    assert seen([step(steps_since_reset=50)]).reset_recency == pytest.approx(math.exp(-2))


def test_what_is_measured_now_and_then_is_averaged_over_the_times_it_was() -> None:
    window = [
        step(),
        step(
            hypergradient_cosine=0.5,
            update_ratio=1e-3,
            attention_entropy=0.7,
            activation_entropy=0.9,
        ),
        step(),
        step(
            hypergradient_cosine=-0.1,
            update_ratio=3e-3,
            attention_entropy=0.5,
            activation_entropy=0.8,
        ),
    ]
    features = seen(window)
    assert features.hypergradient == pytest.approx(0.2)
    assert features.update_ratio == pytest.approx(math.log10(2e-3) + 3)
    assert features.attention_entropy == pytest.approx(4 * (0.6 - 0.5))
    assert features.activation_entropy == pytest.approx(4 * (0.85 - 0.5))


def test_the_inside_of_the_model() -> None:
    features = seen([step(embedding_rms=2.0, shortcut_ratio=4.0), step()])
    assert features.embedding == pytest.approx(math.log(2))
    assert features.shortcut == pytest.approx(math.log(4))


def test_readings_are_the_largest_of_the_window() -> None:
    readings = [
        Reading(1.0, 2.0, 0.5, 1.2, 2.5, False),
        Reading(3.0, 1.0, 0.0, 2.6, 2.5, True),
        Reading(index=0.3),
    ]
    features = seen([step(reading=reading) for reading in readings])
    assert (features.volatility, features.entropy, features.disagreement) == pytest.approx(
        (3 / 2.5, 2 / 2.5, 0.5 / 2.5)
    )
    assert features.index == pytest.approx(2.6 / 2.5)
    assert features.fired == 1
    assert seen([step(), step()]).fired == 0


def test_after_a_reset_there_is_only_the_situation() -> None:
    vector = dict(zip(FEATURES, seen([]).vector().tolist()))
    told = {"budget_left", "validation", "validation_fall"}
    assert {name for name, value in vector.items() if value} == told


def test_nothing_measured_reads_as_zero() -> None:
    vector = dict(zip(FEATURES, seen([step()], gradient_before=math.nan).vector().tolist()))
    inside = (
        "hypergradient",
        "update_ratio",
        "probe_gap",
        "attention_entropy",
        "activation_entropy",
        "embedding",
        "shortcut",
    )
    assert all(vector[name] == 0 for name in (*inside, "gradient"))


# ── whatever happens ────────────────────────────────────────────────────────────────────────────────────────────────

wild = st.floats() | st.sampled_from(
    [math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1.7e308, -1.0]
)
scales = st.floats(1e-6, 1e6)
telemetry = st.builds(
    Telemetry,
    step=st.integers(1, 10**9),
    data_index=st.integers(0, 10**9),
    tokens=st.integers(0, 10**9),
    clip=st.sampled_from(CLIP_NAMES),
    lr_scale=scales,
    weight_decay_scale=scales,
    steps_since_reset=st.integers(-1, 10**9),
    progress=st.floats(0, 1),
    reading=st.builds(Reading, *[st.floats(0, 1e300)] * 5, st.booleans()),
    lr=st.just(0.0) | st.floats(1e-30, 1e30) | st.sampled_from([math.nan, math.inf]),
    **dict.fromkeys(
        (
            "loss",
            "grad_norm",
            "grad_norm_clipped",
            "clip_threshold",
            "clip_score",
            "weight_decay",
            "hypergradient_cosine",
            "update_ratio",
            "probe_loss",
            "attention_entropy",
            "activation_entropy",
            "embedding_rms",
            "shortcut_ratio",
            "loss_scale",
        ),
        wild,
    ),
)
situations = st.builds(
    Situation,
    reference=st.floats(0.1, 20),
    base_lr=st.floats(1e-12, 1e6),
    decision_steps=st.integers(1, 10**6),
    budget_left=st.floats(0, 1),
    validation=st.floats(1e-6, 40) | st.just(math.nan),
    validation_before=st.floats(1e-6, 40) | st.just(math.nan),
    gradient_before=wild,
    flagged=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(window=st.lists(telemetry, max_size=5), now=situations)
def test_finite_and_bounded_whatever_was_measured(window: list[Telemetry], now: Situation) -> None:
    vector = observe(window, now).vector()
    assert vector.dtype == np.float32
    assert np.isfinite(vector).all()
    assert (np.abs(vector) <= BOUND).all()
