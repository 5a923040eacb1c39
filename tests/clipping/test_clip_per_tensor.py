"""AdaGC and GradientStabilizer: hand cases, and their formulas over long series."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.support.clip_references import (
    fill,
    gradient,
    grads,
    norm_of,
    norms,
    parameters,
)
from trainenv.clipping import make
from trainenv.rollouts.folded import Folded
from trainenv.run import TrainingRun
from trainenv.types import UserError


def one(values, clip, **given):
    """Clip a gradient of two tensors, with one element each; return its elements."""
    tensors = [torch.nn.Parameter(torch.ones(1)) for _ in values]
    for tensor, value in zip(tensors, values, strict=True):
        if value is not None:
            tensor.grad = torch.tensor([float(value)])
    clip(tensors, **given)
    return [None if t.grad is None else pytest.approx(float(t.grad), rel=1e-5) for t in tensors]


def test_adagc_by_hand():
    clip = make("adagc", relative=2.0, absolute=5.0, beta=0.5, warmup=2)
    assert one([6.0, 8.0], clip) == [3.0, 4.0]  # global norm 10, scaled to 5
    assert one([1.0, 4.0], clip) == [1.0, 4.0]  # norm below 5
    assert clip.state_dict()["usual"].tolist() == [1.0, 4.0]  # the smallest of the warm-up
    assert one([3.0, -6.0], clip) == [2.0, -6.0]  # 2 × 1 and 2 × 4
    assert clip.state_dict()["usual"].tolist() == [1.5, 5.0]
    assert one([-30.0, 1.0], clip) == [-3.0, 1.0]
    assert clip.state_dict()["usual"].tolist() == [2.25, 3.0]


@pytest.mark.parametrize("unused", [0.0, None])
def test_adagc_leaves_unused_tensors_alone(unused):
    clip = make("adagc", relative=2.0, absolute=5.0, beta=0.5, warmup=2)
    for _ in range(4):
        assert one([unused, 3.0], clip) == [unused, 3.0]
    assert clip.state_dict()["usual"].tolist() == [0.0, 3.0]
    assert one([7.0, 3.0], clip) == [7.0, 3.0]  # the first gradient of the tensor sets its average
    assert one([20.0, 3.0], clip) == [14.0, 3.0]


def adagc_reference(series, warmup, relative, absolute, beta):
    """Yield the gradients of the paper's algorithm; non-finite steps become 0."""
    usual = [math.inf] * len(series[0])
    seen = 0
    for raw in series:
        raw = [part.astype(np.float64) for part in raw]
        if not math.isfinite(norm_of(raw)):
            yield [0 * np.nan_to_num(part) for part in raw]
            continue
        each = [norm_of([part]) for part in raw]
        if seen < warmup:
            factors = [min(1, absolute / norm_of(raw))] * len(raw) if any(each) else [1] * len(raw)
        else:
            factors = [min(1, relative * u / n) if n else 1 for u, n in zip(usual, each)]
        made = [part * factor for part, factor in zip(raw, factors)]
        for place, part in enumerate(made):
            norm = norm_of([part])
            if norm and seen < warmup:
                usual[place] = min(usual[place], norm)
            elif norm:
                usual[place] = beta * usual[place] + (1 - beta) * norm
        seen += 1
        yield made


def test_adagc_follows_its_formula():
    rng = np.random.default_rng(1)
    clip, tensors = make("adagc", warmup=15), parameters()
    series = [gradient(rng, norm) for norm in norms(rng, 200)]
    clipped = 0
    for raw, expected in zip(series, adagc_reference(series, 15, 1.05, 1.0, 0.98), strict=True):
        fill(tensors, raw)
        report = clip(tensors)
        for found, wanted in zip(grads(tensors), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-9)
        clipped += float(report.clipped_norm) < 0.9 * float(report.norm)
    assert 20 < clipped < 180


def test_gradient_stabilizer_by_hand():
    clip = make("gradient_stabilizer", gamma1=0.5, gamma2=0.75)
    assert one([4.0, -0.1], clip) == [1.0, -1.0]  # the first norm is its own mean
    mean = (0.25 * 4 + 0.5 * 8) / 0.75
    square = (0.1875 * 16 + 0.25 * 64) / 0.4375
    assert one([-8.0, 0.1], clip) == [-mean / math.sqrt(square), 1.0]
    assert one([0.0, None], clip) == [0.0, None]
    assert clip.state_dict()["seen"].tolist() == [2, 2]


def test_gradient_stabilizer_bounds_a_spike_whatever_its_size():
    for size in (1e2, 1e6, 1e12):
        clip, tensors, rng = make("gradient_stabilizer"), parameters(), np.random.default_rng(0)
        for _ in range(50):
            fill(tensors, gradient(rng, 0.01))
            clip(tensors)
        raw = gradient(rng, size)
        fill(tensors, raw)
        clip(tensors)
        for found, was in zip(grads(tensors), raw, strict=True):
            # m̂ is at most 0.4 of the spike and √v̂ at least √(0.001 ÷ 0.05) of it
            assert norm_of([found]) < 0.4 / math.sqrt(0.001 / 0.05)
            np.testing.assert_allclose(
                found / norm_of([found]), was.astype(np.float64) / norm_of([was]), rtol=1e-4
            )


@pytest.mark.parametrize("name", ["adagc", "gradient_stabilizer"])
def test_each_tensor_keeps_its_place_and_another_number_of_them_starts_anew(name):
    clip = make(name)
    for _ in range(3):
        one([1.0, None, 5.0], clip)
    state = clip.state_dict()
    assert state["seen"].max() == 3
    assert next(iter(state.values())).numel() == 3
    one([1.0, 5.0], clip)
    assert clip.state_dict()["seen"].max() == 1


@pytest.mark.parametrize("name", ["adagc", "gradient_stabilizer"])
def test_runs_that_clip_each_tensor_are_not_folded(name):
    """Folded, the parameters of a group are one tensor, and the policy would be another one."""
    small = {
        "model": {"width": 16, "layers": 1, "heads": 2, "context": 16},
        "batch_size": 4,
        "steps": 10,
        "clip.policy": name,
    }
    run = TrainingRun.from_config("tiny", small)
    with pytest.raises(UserError, match=f"clipping of the gradient as a whole, found {name}"):
        Folded([run, run.fork()])
    Folded([TrainingRun.from_config("tiny", small | {"clip.policy": "skip_step"})])
