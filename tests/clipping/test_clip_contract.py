"""Contract of every clip policy."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.clip_references import (
    fill,
    gradient,
    grads,
    norm_of,
    norms,
    parameters,
    same,
    same_report,
)
from trainenv.clipping import NAMES, POLICIES, Clipper, make
from trainenv.clipping import norms as primitives
from trainenv.types import CLIP_POLICIES, UserError

VARIANTS = [
    ("none", {}),
    ("none", {"max_norm": 1.0}),
    ("zclip", {}),
    ("zclip", {"mode": "mean", "max_norm": None}),
    ("zclip", {"mode": "percentile"}),
    ("arc", {}),
    ("spam", {"interval": 40, "warmup": 5, "threshold": 30.0, "beta2": 0.9}),
    ("skip_step", {"sigma": 2.0, "window": 24}),
    ("adagc", {"warmup": 12}),
    ("gradient_stabilizer", {}),
]
SAFE = [variant for variant in VARIANTS if variant[0] != "none"]
# Those that scale the whole gradient by one number.
SCALES = [v for v in VARIANTS if v[0] not in ("spam", "adagc", "gradient_stabilizer")]
BAD = [
    ("none", {"max_norm": 0}, "above 0"),
    ("none", {"max_norm": math.inf}, "finite"),
    ("none", {"max_norm": "1"}, "finite number"),
    ("zclip", {"alpha": 1.0}, "below 1"),
    ("zclip", {"alpha": 0.0}, "above 0"),
    ("zclip", {"z_threshold": -1.0}, "above 0"),
    ("zclip", {"z_threshold": math.nan}, "finite"),
    ("zclip", {"warmup": 0}, "at least 1"),
    ("zclip", {"warmup": 2.5}, "whole number"),
    ("zclip", {"mode": "adaptiv"}, "one of adaptive, mean, percentile"),
    ("zclip", {"max_norm": -1.0}, "above 0"),
    ("zclip", {"eps": 0}, "above 0"),
    ("arc", {"suspected": 0.5}, "below 0.5"),
    ("arc", {"suspected": -0.1}, "at least 0"),
    ("arc", {"window": 1}, "at least 2"),
    ("arc", {"window": True}, "whole number"),
    ("spam", {"threshold": 0}, "above 0"),
    ("spam", {"interval": 0}, "at least 1"),
    ("spam", {"warmup": -1}, "at least 0"),
    ("spam", {"warmup": math.inf}, "whole number"),
    ("spam", {"unseen": "drop"}, "one of keep, clip"),
    ("spam", {"beta2": 1}, "below 1"),
    ("skip_step", {"sigma": 0}, "above 0"),
    ("skip_step", {"window": 1}, "at least 2"),
    ("adagc", {"relative": 0}, "above 0"),
    ("adagc", {"absolute": -1.0}, "above 0"),
    ("adagc", {"beta": 1}, "below 1"),
    ("adagc", {"warmup": 0}, "at least 1"),
    ("gradient_stabilizer", {"gamma1": 1}, "below 1"),
    ("gradient_stabilizer", {"gamma2": -0.1}, "at least 0"),
    ("gradient_stabilizer", {"eps": 0}, "above 0"),
]


def identity(variant) -> str:
    return "-".join([variant[0], *(str(value) for value in variant[1].values())])


every = pytest.mark.parametrize(("name", "hyper"), VARIANTS, ids=map(identity, VARIANTS))
every_safe = pytest.mark.parametrize(("name", "hyper"), SAFE, ids=map(identity, SAFE))


def run(clip, seed, steps, odd=0.12):
    """Gradients and reports of some steps."""
    rng, tensors, seen = np.random.default_rng(seed), parameters(), []
    for norm in norms(rng, steps, odd):
        fill(tensors, gradient(rng, norm))
        report = clip(tensors)
        seen.append(([t.grad.clone() for t in tensors], report))
    return seen


def equal(a, b) -> bool:
    return all(
        same_report(x[1], y[1]) and all(same(g, h) for g, h in zip(x[0], y[0], strict=True))
        for x, y in zip(a, b, strict=True)
    )


class CountReads(TorchDispatchMode):
    """Counts values read on the host."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += "_local_scalar_dense" in str(function)
        return function(*args, **(kwargs or {}))


def test_every_policy_is_covered():
    assert NAMES == CLIP_POLICIES == tuple(POLICIES)
    assert {name for name, _ in VARIANTS} == set(NAMES)


@every
def test_saved_state_continues_bit_for_bit(name, hyper):
    clip = make(name, **hyper)
    run(clip, 1, 70)
    resumed = make(name, **hyper)
    resumed.load_state_dict(clip.state_dict())
    assert equal(run(clip, 2, 70), run(resumed, 2, 70))
    before, after = clip.state_dict(), resumed.state_dict()
    assert before.keys() == after.keys()
    assert all(same(before[key], after[key]) for key in before)


@every
def test_state_is_copied_both_ways(name, hyper):
    clip, untouched = make(name, **hyper), make(name, **hyper)
    run(clip, 1, 50)
    run(untouched, 1, 50)
    saved = clip.state_dict()
    for tensor in saved.values():
        tensor.fill_(3)
    assert equal(run(clip, 2, 30), run(untouched, 2, 30))
    saved = clip.state_dict()
    other = make(name, **hyper)
    other.load_state_dict(saved)
    for tensor in saved.values():
        tensor.fill_(3)
    assert equal(run(other, 3, 30), run(clip, 3, 30))


@every
def test_empty_state_is_fresh(name, hyper):
    clip, fresh = make(name, **hyper), make(name, **hyper)
    assert clip.state_dict() == {}
    run(clip, 1, 50)
    clip.load_state_dict({})
    assert clip.state_dict() == {}
    assert equal(run(clip, 2, 50), run(fresh, 2, 50))


@every
def test_wrong_states_are_refused_and_change_nothing(name, hyper):
    clip = make(name, **hyper)
    run(clip, 1, 30)
    saved = clip.state_dict()
    wrong = [{**saved, "surplus": torch.zeros(())}]
    for key in saved:
        wrong.append({k: v for k, v in saved.items() if k != key} or {"renamed": saved[key]})
        wrong.append({**saved, key: torch.zeros(3, 7)})
        wrong.append({**saved, key: saved[key].to(torch.float16)})
        wrong.append({**saved, key: 1.0})
    for state in wrong:
        with pytest.raises(UserError, match=f"{name}.*found.*; load "):
            clip.load_state_dict(state)
    assert all(same(clip.state_dict()[key], saved[key]) for key in saved)


@every_safe
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_non_finite_gradient_becomes_zero_and_leaves_the_statistics(name, hyper, bad):
    clip, tensors, rng = make(name, **hyper), parameters(), np.random.default_rng(0)
    for steps in (0, 3, 60):
        run(clip, 1, steps)
        before = clip.state_dict()
        fill(tensors, gradient(rng, bad))
        report = clip(tensors)
        assert norm_of(grads(tensors)) == 0 == float(report.clipped_norm)
        assert not math.isfinite(float(report.norm))
        after = clip.state_dict()
        # SPAM's step is where the cycle stands, no statistic of gradients.
        assert all(same(before[key], after[key]) for key in before if key != "step")


@every_safe
def test_finite_elements_whose_norm_overflows_count_as_non_finite(name, hyper):
    clip, tensors = make(name, **hyper), parameters()
    run(clip, 1, 60)
    for tensor in tensors:
        tensor.grad = torch.full_like(tensor, 1e30)
    report = clip(tensors)
    assert math.isinf(float(report.norm))
    assert norm_of(grads(tensors)) == 0 == float(report.clipped_norm)
    assert all(
        bool(value.isfinite().all()) for key, value in clip.state_dict().items() if key != "history"
    )


@every
def test_reported_norms_are_those_of_the_gradients(name, hyper):
    clip, tensors, rng = make(name, **hyper), parameters(), np.random.default_rng(5)
    for norm in norms(rng, 80, odd=0.3):
        raw = gradient(rng, norm)
        fill(tensors, raw)
        report = clip(tensors)
        assert float(report.norm) == pytest.approx(norm_of(raw), rel=1e-5, nan_ok=True)
        assert float(report.clipped_norm) == pytest.approx(
            norm_of(grads(tensors)), rel=1e-5, abs=1e-12, nan_ok=True
        )


@pytest.mark.parametrize(("name", "hyper"), SCALES, ids=map(identity, SCALES))
def test_direction_is_kept(name, hyper):
    clip, tensors, rng = make(name, **hyper), parameters(), np.random.default_rng(5)
    for norm in norms(rng, 80, odd=0.3):
        raw = gradient(rng, norm)
        fill(tensors, raw)
        report = clip(tensors)
        if math.isfinite(norm) and norm > 0:
            factor = float(report.clipped_norm) / norm_of(raw)
            assert factor <= 1 + 1e-6
            for found, was in zip(grads(tensors), raw, strict=True):
                np.testing.assert_allclose(found, was.astype(np.float64) * factor, rtol=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_report_is_0d_float32(name, hyper, dtype):
    clip, tensors, rng = make(name, **hyper), parameters(dtype), np.random.default_rng(0)
    for _ in range(45):
        fill(tensors, gradient(rng, 1.0))
        report = clip(tensors)
        for field in dataclasses.fields(report):
            value = getattr(report, field.name)
            if field.name not in ("momentum_reset", "skip", "tensor_norms"):
                assert (value.dtype, value.shape, value.device.type) == (torch.float32, (), "cpu")
                assert not value.requires_grad
        assert isinstance(report.momentum_reset, bool)
        assert all(t.grad.dtype == dtype for t in tensors)


@every
def test_reports_do_not_change_later(name, hyper):
    clip, tensors, rng = make(name, **hyper), parameters(), np.random.default_rng(0)
    for _ in range(30):
        fill(tensors, gradient(rng, 1.0))
        report = clip(tensors)
    kept = copy.deepcopy(report)
    run(clip, 2, 10)
    assert same_report(kept, report)


@every
def test_no_value_is_read_on_the_host_beyond_the_one_on_the_cpu(name, hyper):
    clip, tensors, rng = make(name, **hyper), parameters(), np.random.default_rng(0)
    # SPAM reads its step counter, which lies on the CPU.
    allowed = {"none": 0, "spam": 2}.get(name, 1)
    for norm in norms(rng, 60, odd=0.3):
        fill(tensors, gradient(rng, norm))
        with CountReads() as counter:
            clip(tensors)
        assert counter.reads <= allowed


@every
def test_no_value_is_read_from_another_device(name, hyper):
    """On `meta` there are no values: reading one raises."""
    clip, tensors = make(name, **hyper), parameters(device="meta")
    for place in range(45):
        for tensor in tensors:
            tensor.grad = torch.empty_like(tensor)
        workers = [[torch.empty_like(t) for t in tensors] for _ in range(4)] if place % 2 else None
        report = clip(tensors, workers=workers)
        assert (
            report.norm.device.type
            == report.score.device.type
            == report.threshold.device.type
            == "meta"
        )
        assert report.clipped_norm.device.type == "meta"


def test_counter_of_reads_counts():
    with CountReads() as counter:
        torch.ones(()).item()
        bool(torch.ones(()))
    assert counter.reads == 2


@every
def test_without_host_reads_the_bits_are_the_same(name, hyper, monkeypatch):
    """The way that GPUs take, on the CPU."""
    expected = run(make(name, **hyper), 4, 120, odd=0.3)
    monkeypatch.setattr(primitives, "_host_reads_are_free", lambda tensor: False)
    assert equal(run(make(name, **hyper), 4, 120, odd=0.3), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_zeroing_without_host_reads_removes_every_bit_pattern(dtype, monkeypatch):
    monkeypatch.setattr(primitives, "_host_reads_are_free", lambda tensor: False)
    values = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, -0.0, 1e-7, -3.0], dtype=dtype)
    tensor = values.clone()
    primitives.scale_or_zero_([tensor], torch.tensor(0.0))
    assert torch.equal(tensor, torch.zeros_like(tensor))
    tensor = values[4:].clone()
    primitives.scale_or_zero_([tensor], torch.tensor(0.5))
    assert torch.equal(tensor, values[4:] * 0.5)


@every
def test_parameters_without_gradient_are_ignored(name, hyper):
    clip, tensors = make(name, **hyper), parameters()
    fill(tensors, gradient(np.random.default_rng(0), 3.0))
    tensors.insert(1, torch.nn.Parameter(torch.ones(4)))
    report = clip(tensor for tensor in tensors)
    assert float(report.norm) == pytest.approx(3.0)
    assert tensors[1].grad is None


@every
def test_no_gradient_at_all_is_refused(name, hyper):
    with pytest.raises(UserError, match=r"found none; run loss.backward"):
        make(name, **hyper)(parameters())
    with pytest.raises(UserError, match=r"found none; run loss.backward"):
        make(name, **hyper)([])


@every
def test_workers_fill_the_gradient_with_a_mean(name, hyper):
    tensors, rng = parameters(), np.random.default_rng(0)
    workers = [gradient(rng, 0.2) for _ in range(3)]
    for given in (workers, workers[:1]):
        report = make(name, **hyper)(
            tensors, workers=[[torch.tensor(part) for part in worker] for worker in given]
        )
        mean = [
            np.mean([worker[place] for worker in given], axis=0, dtype=np.float64)
            for place in range(len(tensors))
        ]
        assert float(report.norm) == pytest.approx(norm_of(mean), rel=1e-5)
        if name == "gradient_stabilizer":  # gives each tensor a norm of its own
            mean = [part / norm_of([part]) for part in mean]
        assert float(report.clipped_norm) == pytest.approx(norm_of(mean), rel=1e-5)
        for found, wanted in zip(grads(tensors), mean, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)


def test_workers_that_do_not_match_are_refused():
    tensors = parameters()
    for workers in ([], [[torch.ones(3)]]):
        with pytest.raises(UserError, match="give zeros for a parameter"):
            make("arc")(tensors, workers=workers)


@every
def test_frozen_comparable_and_picklable(name, hyper):
    clip = make(name, **hyper)
    assert clip.name == name
    assert repr(clip) == f"Clipper({clip.policy!r}, name={name!r})"
    assert clip.policy == POLICIES[name](**hyper)
    assert hash(clip.policy) == hash(POLICIES[name](**hyper))
    with pytest.raises(dataclasses.FrozenInstanceError):
        clip.policy.something = 1
    run(clip, 1, 40)
    for twin in (copy.deepcopy(clip), pickle.loads(pickle.dumps(clip))):
        assert equal(run(twin, 2, 20), run(copy.deepcopy(clip), 2, 20))
    assert isinstance(clip.policy.needs_workers, bool)
    assert Clipper(clip.policy).name == type(clip.policy).__name__.lower()


@pytest.mark.parametrize(("name", "hyper", "message"), BAD)
def test_bad_values_are_refused(name, hyper, message):
    (field,) = hyper
    with pytest.raises(UserError, match=f"{field} must.*{message}.*found") as error:
        make(name, **hyper)
    assert repr(hyper[field]) in str(error.value)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"none, zclip, .*, found 'zlip'; did you mean 'zclip'\?"):
        make("zlip")
    with pytest.raises(
        UserError,
        match=r"zclip has no hyperparameter 'z_treshold'; did you mean 'z_threshold'\?; it has: alpha,",
    ):
        make("zclip", z_treshold=3)


def test_whole_numbers_may_come_as_floats():
    assert make("zclip", warmup=25.0).policy == make("zclip").policy
    assert isinstance(make("spam", interval=100.0).policy.interval, int)


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_waits_for_nothing(name, hyper):
    rng, clip, on_cpu = np.random.default_rng(0), make(name, **hyper), make(name, **hyper)
    tensors, twins = parameters(device="cuda"), parameters()
    optimizer = torch.optim.AdamW(tensors, lr=1e-3)
    for norm in norms(rng, 60, odd=0.3):
        raw = gradient(rng, norm)
        fill(twins, raw)
        for tensor, twin in zip(tensors, twins, strict=True):
            tensor.grad = twin.grad.cuda()
        workers = [[t.grad.clone() for t in tensors] for _ in range(4)]
        on_cpu(twins)
        torch.cuda.set_sync_debug_mode("error")
        try:
            report = clip(tensors)
            make(name, **hyper)(tensors, workers=workers, optimizer=optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        if math.isfinite(norm):
            assert float(report.norm) == pytest.approx(norm, rel=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every
def test_state_follows_the_gradients_to_the_gpu(name, hyper):
    clip, tensors = make(name, **hyper), parameters(device="cuda")
    run(clip, 1, 30)
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    clip(tensors)
    assert all(
        value.device.type == ("cpu" if key == "step" else "cuda")
        for key, value in clip.state_dict().items()
    )
