from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.clip_references import (
    ZClipReference,
    fill,
    gradient,
    grads,
    norm_of,
    norms,
    parameters,
)
from trainenv.clipping import make

MODES = ("adaptive", "mean", "percentile")


@pytest.mark.parametrize("max_norm", [1.0, None])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_formula(mode, max_norm, seed):
    rng = np.random.default_rng(seed)
    tensors, clip, reference = (
        parameters(),
        make("zclip", mode=mode, max_norm=max_norm),
        ZClipReference(mode, max_norm),
    )
    clipped = 0
    for norm in norms(rng, 250):
        raw = gradient(rng, norm)
        fill(tensors, raw)
        report = clip(tensors)
        after, threshold, z = reference.step(norm_of(raw))
        assert norm_of(grads(tensors)) == pytest.approx(after, rel=2e-4, abs=1e-12)
        assert float(report.clipped_norm) == pytest.approx(after, rel=2e-4, abs=1e-12)
        if math.isfinite(norm):
            assert float(report.threshold) == pytest.approx(threshold, rel=2e-4)
            assert float(report.score) == pytest.approx(z, rel=1e-3, abs=1e-3)
            clipped += after < norm * 0.999
        state = clip.state_dict()
        assert float(state["mean"]) == pytest.approx(reference.mu, rel=1e-4)
        assert float(state["variance"]) == pytest.approx(reference.var, rel=1e-3, abs=1e-10)
    assert clipped > 10


def test_agrees_with_numbers_worked_out_by_hand():
    """Warm-up norms 1, 2, 3: μ = 2, σ² = 2/3. Then 10: z = 8/σ, c = 2 + 6.25·σ/z = 2 + 6.25·(2/3)/8 ≈ 2.520833."""
    tensors, clip = parameters(), make("zclip", warmup=3, max_norm=None)
    rng = np.random.default_rng(0)
    for norm in (1.0, 2.0, 3.0, 10.0):
        fill(tensors, gradient(rng, norm))
        report = clip(tensors)
    assert float(report.score) == pytest.approx(8 / math.sqrt(2 / 3), rel=1e-5)
    assert float(report.threshold) == pytest.approx(2.5208333, rel=1e-5)
    assert float(clip.state_dict()["mean"]) == pytest.approx(2 + 0.03 * 0.5208333, rel=1e-5)


def test_warm_up_counts_finite_steps_only():
    tensors, clip = parameters(), make("zclip")
    rng = np.random.default_rng(0)
    for place in range(50):
        fill(tensors, gradient(rng, math.nan if place % 2 else 0.5 + 0.01 * (place % 7)))
        assert place % 2 or float(clip(tensors).score) == 0
        if place % 2:
            clip(tensors)
    assert int(clip.state_dict()["seen"]) == 25
    fill(tensors, gradient(rng, 50.0))
    assert float(clip(tensors).score) > 2.5


def test_spike_in_warm_up_is_clipped_at_max_norm():
    tensors, clip = parameters(), make("zclip", max_norm=0.25)
    fill(tensors, gradient(np.random.default_rng(0), 1e4))
    report = clip(tensors)
    assert float(report.clipped_norm) == pytest.approx(0.25)
    assert float(report.threshold) == 0.25


def test_gradient_that_is_not_clipped_keeps_its_bits():
    tensors, clip = parameters(), make("zclip", max_norm=None)
    rng = np.random.default_rng(0)
    for _ in range(40):
        raw = gradient(rng, 0.3)
        fill(tensors, raw)
        assert float(clip(tensors).score) <= 2.5
        assert all(np.array_equal(a, b) for a, b in zip(grads(tensors), raw, strict=True))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    mode=st.sampled_from(MODES),
    sequence=st.lists(
        st.one_of(st.floats(0, 1e15), st.sampled_from([0.0, 1.0, math.inf, math.nan])),
        min_size=30,
        max_size=60,
    ),
)
def test_statistics_stay_finite_and_norms_below_the_threshold(mode, sequence):
    tensors, clip = parameters(), make("zclip", mode=mode, warmup=5)
    rng = np.random.default_rng(0)
    for norm in sequence:
        fill(tensors, gradient(rng, norm))
        report = clip(tensors)
        after = norm_of(grads(tensors))
        assert after <= 1.0 * (1 + 1e-5)
        assert math.isfinite(float(report.clipped_norm))
        state = clip.state_dict()
        assert math.isfinite(float(state["mean"]))
        assert 0 <= float(state["variance"]) < math.inf
