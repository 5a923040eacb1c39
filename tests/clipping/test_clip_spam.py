from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.support.clip_references import (
    SHAPES,
    SPAMReference,
    fill,
    gradient,
    grads,
    norm_of,
    norms,
    parameters,
)
from trainenv.clipping import SPAM, make
from trainenv.types import UserError

THETA = 30.0  # low enough that a random sequence clips often


def element_spikes(rng, norm):
    """A gradient in which some elements are far larger than usual, and some are 0."""
    raw = gradient(rng, norm)
    for part in raw:
        part *= np.where(rng.random(part.shape) < 0.05, 10 ** rng.uniform(0.5, 3), 1.0).astype(
            np.float32
        )
        part *= (rng.random(part.shape) > 0.05).astype(np.float32)
    return raw


@pytest.mark.parametrize("unseen", ["keep", "clip"])
@pytest.mark.parametrize("seed", range(2))
def test_own_v_agrees_with_the_formula_across_cycles(unseen, seed):
    rng = np.random.default_rng(seed)
    tensors = parameters()
    clip = make("spam", threshold=THETA, interval=60, warmup=7, unseen=unseen, beta2=0.9)
    reference = SPAMReference(THETA, 60, 7, unseen, 0.9)
    shares, resets = [], []
    for norm in norms(rng, 200):
        raw = element_spikes(rng, norm)
        fill(tensors, raw)
        report = clip(tensors)
        clipped, share, reset = reference.step(raw)
        for found, wanted in zip(grads(tensors), clipped, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-12)
        assert float(report.clipped_norm) == pytest.approx(norm_of(clipped), rel=1e-4, abs=1e-12)
        assert report.momentum_reset is reset
        if math.isfinite(norm):
            assert float(report.score) == pytest.approx(share, abs=1e-6)
            shares.append(share)
        resets.append(reset)
    assert sum(share > 0 for share in shares) > 20
    assert [place + 1 for place, reset in enumerate(resets) if reset] == [60, 120, 180]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("unseen", ["keep", "clip"])
def test_optimizers_v_agrees_with_the_formula(kind, unseen):
    rng = np.random.default_rng(3)
    tensors = parameters()
    optimizer = kind(tensors, lr=1e-3, betas=(0.9, 0.95))
    clip = make("spam", threshold=THETA, interval=60, warmup=7, unseen=unseen)
    reference = SPAMReference(THETA, 60, 7, unseen)
    clipped_steps = 0
    for norm in norms(rng, 220):
        raw = element_spikes(rng, norm)
        fill(tensors, raw)
        seen = [
            optimizer.state[t]["exp_avg_sq"].clone()
            if optimizer.state.get(t)
            else torch.zeros_like(t)
            for t in tensors
        ]
        reference.v = [v.double().detach().numpy() for v in seen]
        report = clip(tensors, optimizer=optimizer)
        clipped, share, reset = reference.step(raw)
        for found, wanted in zip(grads(tensors), clipped, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-12)
        assert report.momentum_reset is reset
        clipped_steps += share > 0
        if optimizer.state:
            assert all(
                torch.equal(optimizer.state[t]["exp_avg_sq"], v)
                for t, v in zip(tensors, seen, strict=True)
            )
        if reset:
            for state in optimizer.state.values():
                for moment in state.values():
                    moment.zero_()
        optimizer.step()
    assert clipped_steps > 20
    assert clip.state_dict()["v"].numel() == 0


def test_optimizer_without_second_moments_gets_the_policys_own():
    rng = np.random.default_rng(0)
    for optimizer_of in (
        lambda t: torch.optim.SGD(t, lr=0.1),
        lambda t: torch.optim.SGD(t, lr=0.1, momentum=0.9),
    ):
        tensors = parameters()
        optimizer, clip, alone = optimizer_of(tensors), make("spam"), make("spam")
        for _ in range(3):
            raw = gradient(rng, 1.0)
            for clipper, given in ((clip, optimizer), (alone, None)):
                fill(tensors, raw)
                clipper(tensors, optimizer=given)
            optimizer.step()
        assert torch.equal(clip.state_dict()["v"], alone.state_dict()["v"])
        assert clip.state_dict()["v"].any()


def test_v_of_a_parameter_without_moments_yet_is_zero():
    tensors = parameters()
    optimizer = torch.optim.AdamW(tensors, lr=1e-3)
    rng = np.random.default_rng(0)
    fill(tensors, gradient(rng, 1.0))
    late, tensors[0].grad = tensors[0].grad, None
    optimizer.step()
    tensors[0].grad = late
    for unseen, kept in (("keep", late.clone()), ("clip", torch.zeros_like(late))):
        tensors[0].grad = late.clone()
        make("spam", warmup=0, unseen=unseen)(tensors, optimizer=optimizer)
        assert torch.equal(tensors[0].grad, kept)


def test_threshold_is_the_mean_bound_and_inf_in_the_warm_up():
    tensors = parameters()
    optimizer = torch.optim.AdamW(tensors, lr=1e-3)
    rng = np.random.default_rng(0)
    clip = make("spam", warmup=1)
    fill(tensors, gradient(rng, 1.0))
    assert math.isinf(float(clip(tensors, optimizer=optimizer).threshold))
    optimizer.step()
    bounds = np.concatenate(
        [np.sqrt(5000 * optimizer.state[t]["exp_avg_sq"].double().numpy()).ravel() for t in tensors]
    )
    fill(tensors, gradient(rng, 1.0))
    assert float(clip(tensors, optimizer=optimizer).threshold) == pytest.approx(
        bounds.mean(), rel=1e-5
    )


def test_unseen_row_can_learn_unless_the_papers_form_is_asked_for():
    for unseen, moved in (("keep", True), ("clip", False)):
        row = torch.nn.Parameter(torch.zeros(2, 3))
        optimizer, clip = (
            torch.optim.AdamW([row], lr=0.1, weight_decay=0.0),
            make("spam", warmup=2, unseen=unseen),
        )
        for place in range(6):
            row.grad = torch.tensor([[1.0, -1.0, 1.0], [float(place > 3)] * 3])
            clip([row], optimizer=optimizer)
            optimizer.step()
        assert bool(row[1].any()) is moved


def test_changed_number_of_elements_is_refused_where_v_is_its_own():
    tensors, clip = parameters(), make("spam")
    fill(tensors, gradient(np.random.default_rng(0), 1.0))
    clip(tensors)
    with pytest.raises(UserError, match="same parameters at each step, or an optimizer"):
        clip(tensors[1:])


def test_warm_up_as_long_as_a_cycle_is_refused():
    with pytest.raises(UserError, match="warmup must be below interval"):
        SPAM(interval=10, warmup=10)


def test_huge_second_moments_do_not_overflow():
    tensors = [torch.nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.AdamW(tensors)
    tensors[0].grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    optimizer.state[tensors[0]]["exp_avg_sq"].fill_(1e36)
    tensors[0].grad = torch.tensor([1e18, 1.0])
    report = make("spam", warmup=0)(tensors, optimizer=optimizer)
    assert math.isfinite(float(report.threshold))
    assert float(report.threshold) == pytest.approx(math.sqrt(5000) * 1e18, rel=1e-5)


def test_elements_are_those_of_the_shapes():
    assert len(SHAPES) == len(parameters())


def test_threshold_is_inf_where_no_element_was_seen():
    for unseen, threshold in (("keep", math.inf), ("clip", 0.0)):
        tensors = parameters()
        fill(tensors, gradient(np.random.default_rng(0), 1.0))
        assert float(make("spam", warmup=0, unseen=unseen)(tensors).threshold) == threshold
