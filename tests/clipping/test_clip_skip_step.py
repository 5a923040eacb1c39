"""Skip-step: its formula, its statistics, and steps that are left out in a run."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from tests.support.bigram import tokens
from tests.support.clip_references import fill, gradient, norm_of, norms, parameters
from tests.support.own_runs import config, run_of
from trainenv.clipping import make
from trainenv.objectives import NextToken


def reference(values: list[float], window: int, sigma: float) -> bool:
    """Decide on the newest of `values` as OLMo-core does; all values are finite."""
    known = values[-window - 1 :]
    if len(known) < max(20, window // 2):
        return False
    mean = statistics.fmean(known[:-1])
    return known[-1] - mean > sigma * statistics.stdev(known[:-1])


@pytest.mark.parametrize(("window", "sigma"), [(24, 2.0), (60, 3.0), (128, 6.0)])
def test_skips_as_olmo_core_does(window, sigma):
    rng = np.random.default_rng(3)
    clip, tensors = make("skip_step", window=window, sigma=sigma), parameters()
    seen: dict[str, list[float]] = {"norm": [], "loss": []}
    skipped = 0
    for norm in norms(rng, 300, odd=0.1):
        loss = float(np.float32(3.0 + 0.1 * rng.standard_normal() + 5.0 * (rng.random() < 0.02)))
        fill(tensors, gradient(rng, norm))
        report = clip(tensors, loss=torch.tensor(loss))
        finite = math.isfinite(float(report.norm))
        expected = not finite
        if finite:
            seen["norm"].append(float(report.norm))
            seen["loss"].append(loss)
            expected = any(reference(values, window, sigma) for values in seen.values())
        assert bool(report.skip) == expected
        assert (norm_of([t.grad.numpy() for t in tensors]) == 0) == (expected or norm == 0)
        skipped += expected and finite
    assert skipped > 5


def test_loss_alone_skips_a_step_and_its_absence_leaves_the_norm_to_decide():
    rng = np.random.default_rng(0)
    for loss, expected in ((9.0, True), (3.0, False), (None, False)):
        clip, tensors = make("skip_step"), parameters()
        for place in range(80):
            fill(tensors, gradient(rng, 1.0 + 0.01 * rng.random()))
            value = torch.tensor(3.0 + 0.01 * rng.random())
            if place == 79:
                value = None if loss is None else torch.tensor(loss)
            report = clip(tensors, loss=value)
        assert bool(report.skip) is expected
        assert float(report.threshold) == pytest.approx(1.005, abs=0.02)


def test_loss_that_is_not_finite_is_skipped_and_forgotten():
    rng = np.random.default_rng(0)
    clip, tensors = make("skip_step"), parameters()
    for place in range(90):
        fill(tensors, gradient(rng, 1.0 + 0.01 * rng.random()))
        loss = math.nan if place in (0, 70) else 3.0 + 0.01 * rng.random()
        report = clip(tensors, loss=torch.tensor(loss))
        assert bool(report.skip) is math.isnan(loss)
    assert int(clip.state_dict()["losses_seen"]) == 88


def test_skipped_step_changes_neither_weights_nor_moments():
    """The gradient of batch 40 is a thousand times as large as the others."""

    def batches(index):
        return {"tokens": tokens(index), "scale": torch.tensor(1000.0 if index == 40 else 1.0)}

    def objective(model, micro):
        return micro["scale"] * NextToken()(model, micro["tokens"])

    clip = {"policy": "skip_step", "options": {"skip_step": {"window": 30}}}
    run = run_of(
        batches=batches, objective=objective, config=config(clip=clip), validation=[batches(99)]
    )
    run.advance(40)
    before = run.snapshot()
    (step,) = run.advance(1)
    after = run.snapshot()
    assert step.clipped
    assert step.grad_norm_clipped == 0
    for name, tensor in before.tensors.items():
        if name.startswith(("model/", "optimizer/")):
            assert torch.equal(tensor, after.tensors[name]), name
    (step,) = run.advance(1)
    assert not step.clipped
