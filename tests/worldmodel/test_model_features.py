"""Features: each once, alike for runs of another scale, NaN where nothing was measured, and plain words for bad histories."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.made_models import history, telemetry
from trainenv.types import CLIP_NAMES, Intervention, RunHistory, UserError
from trainenv.worldmodel import features
from trainenv.worldmodel.features import ACTION, GROUPS, LEAST_STEPS, STATE


def state(of: RunHistory) -> dict[str, float]:
    return dict(zip(STATE, features.state(*features.read(of))))


def test_every_feature_is_in_one_group() -> None:
    assert len(set(STATE)) == len(STATE) == sum(len(names) for names in GROUPS.values())
    assert set(GROUPS) == {"time", "rate", "steering", "loss", "gradient", "inside", "index"}
    assert len(set(ACTION)) == len(ACTION)


def test_a_run_that_measures_all_has_all_features() -> None:
    assert [name for name, value in state(history(150)).items() if not math.isfinite(value)] == []


@settings(max_examples=25, deadline=None)
@given(loss=st.floats(0.05, 20), gradient=st.floats(1e-3, 1e3), rate=st.floats(1e-3, 1e3))
def test_losses_and_learning_rates_of_another_scale_have_the_same_features(
    loss: float, gradient: float, rate: float
) -> None:
    """Where all losses of a run, the uniform guess's included, are multiplied; or all rates. Gradients count as they are."""
    plain = history(80)
    rows = [
        replace(
            t,
            loss=loss * t.loss,
            probe_loss=loss * t.probe_loss,
            grad_norm=gradient * t.grad_norm,
            grad_norm_clipped=gradient * t.grad_norm_clipped,
            lr=rate * t.lr,
            weight_decay=t.weight_decay / rate,
        )
        for t in plain.telemetry
    ]
    scaled = replace(
        plain,
        telemetry=rows,
        uniform_loss=loss * plain.uniform_loss,
        validation=loss * plain.validation,
        base_lr=rate * plain.base_lr,
        lrs_ahead=[rate * lr for lr in plain.lrs_ahead],
    )
    before, after = state(plain), state(scaled)
    expected = before | {
        "gradient": before["gradient"] + math.log(gradient),
        "update_per_lr": before["update_per_lr"] - math.log10(rate),
    }
    assert after == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_times_count_in_decisions() -> None:
    """A run of twice the steps, each decision twice as long, is as far along."""
    short, long = (
        state(history(64, left=100, decision=4)),
        state(history(128, left=200, decision=8)),
    )
    for name in ("left", "past"):
        assert long[name] == pytest.approx(short[name])
    assert long["progress"] == pytest.approx(short["progress"])
    assert long["decision"] == pytest.approx(short["decision"] + math.log(2))
    assert long["lr_rest"] == pytest.approx(short["lr_rest"], abs=0.02)


def test_what_features_say_of_a_known_run() -> None:
    rows = telemetry(
        64,
        loss=2.0,
        grad_norm=4.0,
        grad_norm_clipped=2.0,
        lr=1e-3,
        lr_scale=0.5,
        steps_since_reset=8,
        clip="spam",
    )
    found = state(history(rows=rows, left=64, validation=1.0, uniform_loss=math.e))
    assert found["progress"] == 0.5
    assert found["level"] == pytest.approx(-1.0)
    assert found["train_gap"] == pytest.approx(math.log(2))
    assert [found["slope_4"], found["noise"], found["above_best"]] == pytest.approx(
        [0.0] * 3, abs=1e-12
    )
    assert found["clip_depth"] == pytest.approx(math.log(2))
    assert found["clipped_1"] == 1.0
    assert found["lr"] == 0.0
    assert found["lr_scale"] == pytest.approx(math.log(0.5))
    assert found["clip_spam"] == 1.0
    assert found["clip_arc"] == 0.0
    assert found["reset_recency"] == pytest.approx(math.exp(-2))
    assert found["flagged"] == pytest.approx(math.log(3))
    assert found["fired_recency"] == pytest.approx(math.exp(-14 / 4))
    assert found["lr_sum"] == pytest.approx(math.log(sum(1 - k / 64 for k in range(64)) / 64))


def test_slopes_are_changes_of_the_logarithm_over_the_window() -> None:
    falling = [math.exp(-0.01 * step) for step in range(64)]
    found = state(history(rows=telemetry(64, loss=falling)))
    assert found["slope_4"] == pytest.approx(10 * -0.01 * 15)
    assert found["slope_16"] == pytest.approx(10 * -0.01 * 63)


def test_what_was_not_measured_is_nan() -> None:
    nothing = dict.fromkeys(
        (
            "hypergradient_cosine",
            "update_ratio",
            "probe_loss",
            "attention_entropy",
            "embedding_rms",
        ),
        math.nan,
    )
    found = state(history(rows=telemetry(64, **nothing), validation=math.nan))
    unmeasured = {name for name, value in found.items() if math.isnan(value)}
    assert {
        "cosine_4",
        "update_ratio",
        "probe_gap",
        "probe_slope",
        "attention",
        "embedding_change",
    } <= unmeasured
    assert {"level", "train_gap", "slope_4", "gradient", "lr", "activation"}.isdisjoint(unmeasured)
    assert found["level"] == pytest.approx(
        np.log([t.loss for t in telemetry(64)][-4:]).mean() - math.log(math.log(257))
    )


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_a_loss_or_norm_on_the_way_that_is_no_number_is_left_out(lost: float) -> None:
    rows = telemetry(64)
    rows[60] = replace(rows[60], loss=lost, grad_norm=lost, grad_norm_clipped=0.0)
    found = state(history(rows=rows))
    assert all(
        math.isfinite(found[name])
        for name in ("slope_1", "noise", "gradient", "gradient_spread", "clip_depth")
    )
    assert found["clipped_1"] >= 0.25


def test_actions_are_logarithms_and_nothing_is_zeros() -> None:
    assert features.action(Intervention()) == (0.0,) * len(ACTION)
    whole = Intervention(
        lr_scale=0.5,
        weight_decay_scale=2.0,
        clip="zclip",
        momentum_reset=True,
        data_reorder=True,
        skip_batch=True,
    )
    found = dict(zip(ACTION, features.action(whole)))
    assert found["ln_lr"] == pytest.approx(math.log(0.5))
    assert found["ln_weight_decay"] == pytest.approx(math.log(2))
    assert [name for name in CLIP_NAMES if found[f"set_{name}"]] == ["zclip"]
    assert found["reset"] == found["reorder"] == found["skip"] == 1.0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too short": (
        {"rows": telemetry(LEAST_STEPS - 1)},
        "at least 16 steps, found 15; train more steps first",
    ),
    "empty": ({"rows": []}, "at least 16 steps, found 0"),
    "gaps": (
        {"rows": telemetry(20) + telemetry(20, first=40)},
        "consecutive steps, found gaps; leave rewound steps out",
    ),
    "twice": ({"rows": telemetry(20) + telemetry(20)}, "consecutive steps"),
    "lost": (
        {"rows": telemetry(20, loss=[2.0] * 19 + [math.nan])},
        "must end with a finite loss and gradient norm, found nan",
    ),
    "blown": (
        {"rows": telemetry(20, grad_norm=[2.0] * 19 + [math.inf])},
        "found .* and inf at step 20; rewind to before that",
    ),
    "no rates": ({"lrs_ahead": []}, "lrs_ahead must be the learning rates of the steps to come"),
    "a NaN ahead": ({"lrs_ahead": [1e-3, math.nan]}, "lrs_ahead must be"),
    "a rate below 0": ({"lrs_ahead": [1e-3, -1e-3]}, "lrs_ahead must be"),
    "rates in a table": ({"lrs_ahead": [[1e-3], [1e-3]]}, "lrs_ahead must be"),
    "base 0": ({"base_lr": 0.0}, "base_lr of a history must be a finite number above 0, found 0.0"),
    "base NaN": (
        {"base_lr": math.nan},
        "base_lr of a history must be a finite number above 0, found nan",
    ),
    "uniform": (
        {"uniform_loss": -1.0},
        "uniform_loss of a history must be a finite number above 0",
    ),
    "decision": ({"decision_steps": 0}, "decision_steps must be at least 1, found 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_history_that_cannot_be_read_is_refused_in_a_sentence(name: str) -> None:
    changes, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence):
        features.read(history(**changes))


def test_any_sequence_will_do_and_of_a_long_one_the_end_is_read() -> None:
    long = telemetry(700)
    assert state(history(rows=deque(long))) == state(history(rows=tuple(long[-512:])))
    columns, now = features.read(history(rows=long, decision=20))
    assert len(columns["step"]) == 700  # forty decisions: windows count in decisions, too
    assert now.done == 700
