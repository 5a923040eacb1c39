from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.support.clip_references import fill, gradient, grads, norms, parameters, same
from trainenv.clipping import make


@pytest.mark.parametrize("max_norm", [1.0, 0.3, 1e-3])
def test_fixed_clip_is_torchs_bit_for_bit(max_norm):
    rng = np.random.default_rng(0)
    ours, theirs, clip = parameters(), parameters(), make("none", max_norm=max_norm)
    for norm in norms(rng, 200, odd=0.3):
        raw = gradient(rng, norm)
        fill(ours, raw)
        fill(theirs, raw)
        report = clip(ours)
        total = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        assert same(report.norm, total)
        assert all(same(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_fixed_clip_reports_its_norms():
    tensors = parameters()
    fill(tensors, gradient(np.random.default_rng(0), 8.0))
    report = make("none", max_norm=2.0)(tensors)
    assert float(report.norm) == pytest.approx(8.0)
    assert float(report.clipped_norm) == pytest.approx(2.0, rel=1e-5)
    assert float(report.threshold) == 2.0
    assert float(report.score) == pytest.approx(4.0)


@pytest.mark.parametrize("norm", [0.0, 1.0, 1e6, math.inf, math.nan])
def test_without_max_norm_everything_passes(norm):
    tensors = parameters()
    raw = gradient(np.random.default_rng(0), norm)
    fill(tensors, raw)
    report = make("none")(tensors)
    assert all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(grads(tensors), raw, strict=True)
    )
    assert same(report.norm, report.clipped_norm)
    assert math.isinf(float(report.threshold))
    assert float(report.score) == 0
