"""The hypergradient against what the optimizer really did to the parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from tests.support import own_runs
from trainenv.monitor import hypergradient as module
from trainenv.monitor.hypergradient import ObservedStep, hypergradient
from trainenv.run import TrainingRun
from trainenv.training.optimizers import reset_moments

LR = 3e-3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Linear(8, 1, bias=False))


def backward(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    (model(torch.randn(10, 6, generator=generator)) - 1).square().mean().backward()


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().flatten().double() for t in tensors])


def after(steps: int, make: Any) -> tuple[nn.Module, Optimizer, Tensor]:
    """A model with a gradient after so many steps, its optimizer, and the parameters before the last step."""
    model = net()
    optimizer = make(model.parameters())
    before = flat(model.parameters())
    for step in range(steps):
        backward(model, optimizer, step)
        before = flat(model.parameters())
        optimizer.step()
    backward(model, optimizer, 99)
    return model, optimizer, before


@pytest.mark.parametrize("steps", [1, 2, 7, 60])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: AdamW(p, lr=LR, weight_decay=0.0, fused=True),
        lambda p: AdamW(p, lr=LR, weight_decay=0.0, betas=(0.5, 0.7), eps=1e-3),
        lambda p: Adam(p, lr=LR, foreach=True),
    ],
)
def test_against_the_parameters_differences(steps: int, make: Any) -> None:
    model, optimizer, before = after(steps, make)
    cosine, ratio = hypergradient(list(model.parameters()), optimizer)
    now, gradient = flat(model.parameters()), flat(p.grad for p in model.parameters())
    subtracted = before - now
    expected = torch.dot(gradient, subtracted) / gradient.norm() / subtracted.norm()
    assert cosine.shape == ratio.shape == ()
    assert cosine.item() == pytest.approx(expected.item(), abs=1e-4)
    assert ratio.item() == pytest.approx((subtracted.norm() / now.norm()).item(), rel=1e-3)
    assert -1 <= cosine.item() <= 1


def test_its_sign_says_whether_a_larger_rate_would_have_done_better() -> None:
    model = net()
    optimizer = AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    backward(model, optimizer, 5)
    optimizer.step()
    backward(model, optimizer, 5)
    assert hypergradient(list(model.parameters()), optimizer)[0].item() > 0.5
    far = net()
    optimizer = AdamW(far.parameters(), lr=3.0, weight_decay=0.0)
    backward(far, optimizer, 5)
    optimizer.step()
    backward(far, optimizer, 5)
    assert hypergradient(list(far.parameters()), optimizer)[0].item() < 0


@pytest.mark.parametrize("chunk", [1, 7, 50, 96, 97, 10**9])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, _ = after(5, lambda p: AdamW(p, lr=LR))
    whole = hypergradient(list(model.parameters()), optimizer)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    for one, other in zip(whole, hypergradient(list(model.parameters()), optimizer)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("chunk", [1, 5, 10, 12, 100])
def test_chunks_are_consecutive_and_bounded(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    rows: list[Any] = [(torch.zeros(n), {}, {}) for n in (3, 9, 1, 1, 20, 2, 2, 2, 5)]
    chunks = list(module._chunks(rows))
    assert [row for part in chunks for row in part] == rows
    assert all(part for part in chunks)
    assert all(len(part) == 1 or sum(p.numel() for p, _, _ in part) <= chunk for part in chunks)


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=LR), lambda p: SGD(p, lr=LR, momentum=0.9)])
def test_not_an_adam(make: Any) -> None:
    model, optimizer, _ = after(3, make)
    assert all(
        math.isnan(value.item()) for value in hypergradient(list(model.parameters()), optimizer)
    )


def test_before_the_first_step_and_after_a_reset() -> None:
    model, optimizer, _ = after(0, lambda p: AdamW(p, lr=LR))
    assert all(
        math.isnan(value.item()) for value in hypergradient(list(model.parameters()), optimizer)
    )
    model, optimizer, _ = after(3, lambda p: AdamW(p, lr=LR))
    reset_moments(optimizer)
    cosine, _ = hypergradient(list(model.parameters()), optimizer)
    assert math.isnan(cosine.item())


def test_nothing_is_changed() -> None:
    model, optimizer, _ = after(3, lambda p: AdamW(p, lr=LR))
    state = [{k: v.clone() for k, v in entry.items()} for entry in optimizer.state.values()]
    gradients, weights = (
        [p.grad.clone() for p in model.parameters() if p.grad is not None],
        flat(model.parameters()),
    )
    hypergradient(list(model.parameters()), optimizer)
    assert torch.equal(weights, flat(model.parameters()))
    assert all(
        torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters()) if p.grad is not None
    )
    for before, entry in zip(state, optimizer.state.values()):
        assert all(torch.equal(before[k], entry[k]) for k in before)


def test_some_parameters_without_a_gradient() -> None:
    model, optimizer, _ = after(3, lambda p: AdamW(p, lr=LR))
    kept = list(model.parameters())[:2]
    everything = hypergradient(list(model.parameters()), optimizer)
    some = hypergradient(kept, optimizer)
    assert all(math.isfinite(value.item()) for value in (*everything, *some))
    assert some[1].item() != everything[1].item()


@pytest.mark.parametrize(
    ("warmup", "warming", "every"),
    [(0, 1, 16), (20, 1, 16), (64, 4, 16), (200, 12, 16), (2000, 16, 16)],
)
def test_a_warm_up_is_looked_at_often(warmup: int, warming: int, every: int) -> None:
    small = {
        "batch_size": 1,
        "model": {"width": 16, "layers": 1, "heads": 2, "context": 8},
        "monitor.probe_every": every // 2,
    }
    run = TrainingRun.from_config(
        "tiny", small | {"schedule.warmup": warmup, "validation": {"every": 0, "sequences": 2}}
    )
    measured = [t.step - 1 for t in run.advance(256) if math.isfinite(t.hypergradient_cosine)]
    steps = range(1, 256)  # before the first there is no update
    assert measured == [
        step for step in steps if step % (warming if step < 3 * warmup else every) == 0
    ]


# ── other optimizers than Adam ────────────────────────────────────────────────────────────────────

OTHERS = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "adam": lambda p: AdamW(p, lr=LR, weight_decay=0.0),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("chunk", [7, 10**9])
def test_observed_step_of_any_optimizer(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    model = net()
    optimizer = OTHERS[name](model.parameters())
    parameters, observed = list(model.parameters()), ObservedStep()
    for step in range(4):
        backward(model, optimizer, step)
        before = flat(parameters)
        observed.observe(parameters, optimizer, wanted=True)
        optimizer.step()
    backward(model, optimizer, 99)
    assert (observed.before is None) == (name == "adam")
    cosine, ratio = observed.measure(parameters, optimizer)
    gradient, subtracted = flat(p.grad for p in parameters), before - flat(parameters)
    expected = torch.dot(gradient, subtracted) / gradient.norm() / subtracted.norm()
    assert cosine.item() == pytest.approx(expected.item(), abs=1e-4)
    assert ratio.item() == pytest.approx(
        (subtracted.norm() / flat(parameters).norm()).item(), rel=1e-3
    )


def test_observed_step_is_blind_where_nothing_was_kept_or_moved() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    parameters, observed = list(model.parameters()), ObservedStep()
    backward(model, optimizer, 0)
    observed.observe(parameters, optimizer, wanted=False)
    assert math.isnan(observed.measure(parameters, optimizer)[0].item())
    observed.observe(parameters, optimizer, wanted=True)
    assert math.isnan(observed.measure(parameters, optimizer)[0].item())
    optimizer.step()
    backward(model, optimizer, 1)
    assert math.isfinite(observed.measure(parameters, optimizer)[0].item())
    assert math.isnan(observed.measure(parameters[:-1], optimizer)[0].item())


def sgd_run() -> TrainingRun:
    model = own_runs.net()
    return own_runs.run_of(model, SGD(model.parameters(), 0.1, momentum=0.9))


def test_runs_without_adam_measure_the_hypergradient_and_stay_values() -> None:
    run = own_runs.assert_value(sgd_run)
    measured = [t.hypergradient_cosine for t in run.advance(20)]
    assert sum(math.isfinite(cosine) for cosine in measured) == 5  # at every fourth step
    assert all(math.isfinite(t.update_ratio) for t in sgd_run().advance(6)[1:])


def test_negative_control_without_the_kept_weights_a_run_is_no_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = TrainingRun._state
    monkeypatch.setattr(
        TrainingRun, "_state", lambda run: {k: v for k, v in whole(run).items() if k != "observed"}
    )
    with pytest.raises(AssertionError):
        own_runs.assert_value(sgd_run)


def test_range_test_sees_a_rate_that_is_too_high_for_sgd() -> None:
    """The mean cosine over the warm-up is above 0 for a usual rate, and at most 0 for a large one."""

    def mean(lr: float) -> float:
        model = own_runs.net()
        config = own_runs.config(schedule={"warmup": 40})
        run = own_runs.run_of(model, SGD(model.parameters(), lr, momentum=0.9), config=config)
        found = [t.hypergradient_cosine for t in run.advance(33)[10:]]
        return sum(c for c in found if math.isfinite(c)) / len(found)

    assert mean(0.05) > 0 > mean(20.0)
