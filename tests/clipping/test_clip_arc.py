from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.support.clip_references import (
    ARCStepsReference,
    arc_rank,
    arc_workers,
    fill,
    gradient,
    grads,
    norm_of,
    norms,
    parameters,
)
from trainenv.clipping import make
from trainenv.clipping.arc import cut_count


@pytest.mark.parametrize(("share", "window"), [(0.1, 32), (0.0, 32), (0.3, 8), (0.4, 2)])
@pytest.mark.parametrize("seed", range(2))
def test_steps_as_workers_agree_with_the_formula(share, window, seed):
    rng = np.random.default_rng(seed)
    tensors, clip, reference = (
        parameters(),
        make("arc", suspected=share, window=window),
        ARCStepsReference(share, window),
    )
    clipped = 0
    for norm in norms(rng, 220):
        raw = gradient(rng, norm)
        fill(tensors, raw)
        report = clip(tensors)
        after, threshold = reference.step(norm_of(raw))
        assert norm_of(grads(tensors)) == pytest.approx(after, rel=1e-5, abs=1e-12)
        assert float(report.clipped_norm) == pytest.approx(after, rel=1e-5, abs=1e-12)
        assert float(report.threshold) == pytest.approx(threshold, rel=1e-5)
        if math.isfinite(norm) and threshold > 0:
            assert float(report.score) == pytest.approx(norm / threshold, rel=1e-5)
            clipped += after < norm * 0.999
    assert clipped > 10 if share else clipped == 0


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("seed", range(2))
def test_workers_agree_with_the_formula(n, seed):
    rng = np.random.default_rng(seed)
    tensors, clip = parameters(), make("arc")
    for _ in range(40):
        workers = [gradient(rng, norm) for norm in norms(rng, n, odd=0.4)]
        report = clip(
            tensors, workers=[[torch.tensor(part) for part in worker] for worker in workers]
        )
        expected, threshold = arc_workers(workers)
        for found, wanted in zip(grads(tensors), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * min(threshold, 1e3))
        assert float(report.threshold) == pytest.approx(threshold, rel=1e-5)
        assert float(report.clipped_norm) == pytest.approx(
            norm_of(grads(tensors)), rel=1e-5, abs=1e-12
        )
        with np.errstate(invalid="ignore"):
            mean = [
                np.mean([worker[place] for worker in workers], axis=0)
                for place in range(len(tensors))
            ]
        assert float(report.norm) == pytest.approx(norm_of(mean), rel=1e-5, nan_ok=True)


def test_number_cut_is_that_of_the_paper():
    """By hand, k = ⌊2 (f/n) (n − f)⌋: n = 10, f = 3: ⌊4.2⌋; n = 32, f = 3: ⌊5.4⌋; n = 4, f = 1: ⌊1.5⌋."""
    assert cut_count(10, 0.3) == 4
    assert cut_count(32, 0.1) == 5
    assert cut_count(4, 0.1) == 1
    assert cut_count(1, 0.1) == 0
    assert cut_count(100, 0.0) == 0
    assert all(
        cut_count(n, s) == arc_rank(n, s) < n
        for n in range(1, 80)
        for s in (0, 0.05, 0.1, 0.25, 0.4, 0.49)
    )


def test_one_wild_worker_of_four_is_cut_to_the_next():
    tensors, rng = parameters(), np.random.default_rng(1)
    workers = [gradient(rng, norm) for norm in (1.0, 2.0, 3.0, 1e4)]
    report = make("arc")(
        tensors, workers=[[torch.tensor(part) for part in worker] for worker in workers]
    )
    assert float(report.threshold) == pytest.approx(3.0)
    assert float(report.score) == pytest.approx(1e4 / 3, rel=1e-5)
    assert float(report.clipped_norm) <= (1 + 2 + 3 + 3) / 4


def test_wild_worker_is_cut_beside_a_broken_one():
    tensors, rng = parameters(), np.random.default_rng(1)
    workers = [gradient(rng, norm) for norm in (1.0, 2.0, math.nan, 1e4)]
    report = make("arc")(
        tensors, workers=[[torch.tensor(part) for part in worker] for worker in workers]
    )
    assert float(report.threshold) == pytest.approx(2.0)
    assert float(report.clipped_norm) <= (1 + 2 + 2) / 4


def test_only_good_worker_decides_alone():
    tensors, rng = parameters(), np.random.default_rng(1)
    good = gradient(rng, 3.0)
    workers = [good, *(gradient(rng, math.inf) for _ in range(3))]
    make("arc")(tensors, workers=[[torch.tensor(part) for part in worker] for worker in workers])
    for found, wanted in zip(grads(tensors), good, strict=True):
        np.testing.assert_allclose(found, wanted / 4, rtol=1e-6)


def test_all_workers_broken_make_a_zero_gradient():
    tensors, rng = parameters(), np.random.default_rng(1)
    workers = [gradient(rng, math.nan) for _ in range(4)]
    clip = make("arc")
    report = clip(tensors, workers=[[torch.tensor(part) for part in worker] for worker in workers])
    assert norm_of(grads(tensors)) == 0 == float(report.clipped_norm)
    assert math.isnan(float(report.norm))
    assert bool(clip.state_dict()["history"].isinf().all())


def test_last_worker_may_share_memory_with_the_gradient():
    tensors, rng = parameters(), np.random.default_rng(1)
    workers = [gradient(rng, norm) for norm in (1.0, 2.0, 3.0, 100.0)]
    lists = [[torch.tensor(part) for part in worker] for worker in workers]
    for tensor, part in zip(tensors, lists[-1], strict=True):
        tensor.grad = part
    make("arc")(tensors, workers=lists)
    expected, _ = arc_workers(workers)
    for found, wanted in zip(grads(tensors), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_nothing_is_clipped_before_27_of_32_norms_are_known():
    tensors, rng, clip = parameters(), np.random.default_rng(1), make("arc")
    for place in range(1, 40):
        fill(tensors, gradient(rng, 1.0))
        assert math.isinf(float(clip(tensors).threshold)) == (place < 27)
