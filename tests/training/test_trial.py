"""One look before a run starts: it changes nothing of the run. And the modes that a run puts its parts in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.bigram import tokens
from tests.support.own_runs import run_of


def loss_of(model: nn.Module, seen: Tensor) -> Tensor:
    return F.cross_entropy(model(seen[:, :-1]).flatten(0, 1), seen[:, 1:].flatten())


# ── to look changes nothing ─────────────────────────────────────────────────────────────────────────────────────────


class Counting(nn.Module):
    """Counts in every way there is, whatever the mode."""

    kept: Tensor
    fleeting: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Embedding(8, 6), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(6, 8)
        )
        self.register_buffer("kept", torch.zeros(()))
        self.register_buffer("fleeting", torch.zeros(()), persistent=False)
        self.calls = 0

    def forward(self, seen: Tensor) -> Tensor:
        self.calls += 1
        self.kept += 1
        self.fleeting = self.fleeting + 1
        self.last = self.inner(seen)
        return self.last


class Remembering:
    """A loss with a state, which counts its calls."""

    def __init__(self) -> None:
        self.calls = {"all": 0}

    def __call__(self, model: nn.Module, seen: Tensor) -> Tensor:
        self.calls["all"] += 1
        return loss_of(model, seen)

    def state_dict(self) -> dict[str, Any]:
        return self.calls

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = dict(state)


def test_nothing_is_changed_by_looking() -> None:
    torch.manual_seed(0)
    model, objective = Counting(), Remembering()
    model.inner[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    randomness = torch.get_rng_state()
    run = run_of(model, objective=objective)
    assert (model.calls, objective.calls, float(model.fleeting)) == (0, {"all": 0}, 0)
    assert not hasattr(model, "last")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.inner] == [True, False, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), randomness)
    run.advance(2)
    assert (model.calls, objective.calls) == (2, {"all": 2})


def test_a_loss_that_only_training_has_is_looked_at_in_training() -> None:
    def strict(model: nn.Module, seen: Tensor) -> Tensor:
        if not model.training:
            raise ValueError("targets are taken in training only")
        return loss_of(model, seen)

    run_of(objective=strict, validation=()).advance(2)


def test_data_are_drawn_twice_and_no_more() -> None:
    calls: list[int] = []
    run_of(batches=lambda index: calls.append(index) or tokens(index)).advance(2)  # type: ignore[func-returns-value]
    assert calls == [0, 0, 0, 1]


def test_forks_are_not_looked_at_again() -> None:
    run, calls = run_of(), list[int]()
    run._batches = lambda index: calls.append(index) or tokens(index)  # type: ignore[func-returns-value]
    run.fork()
    assert not calls


# ── modes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_in_evaluation_mode_is_trained_in_training_mode() -> None:
    model = nn.Sequential(nn.Embedding(8, 6), nn.Dropout(0.5), nn.Linear(6, 8)).eval()
    run = run_of(model)
    assert model.training
    model.eval()
    run.advance(1)
    assert model[1].training
    model[1].eval()
    run.advance(1)
    assert not model[1].training
    assert not run.fork().model[1].training  # type: ignore[index]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_the_caller_does_with_gradients_is_no_matter(mode: Callable[[], Any]) -> None:
    expected, run = run_of(probe=tokens(5)), run_of(probe=tokens(5))
    with mode():
        losses = [t.loss for t in run.advance(3)]
        snapshot, fork = run.snapshot(), run.fork()
        run.advance(2)
        run.restore(snapshot)
        run.evaluate()
    assert losses == [t.loss for t in expected.advance(3)]
    on = [repr(t) for t in expected.advance(3)]
    assert [repr(t) for t in run.advance(3)] == on == [repr(t) for t in fork.advance(3)]
