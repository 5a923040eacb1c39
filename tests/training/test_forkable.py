"""Modules, optimizers and losses that resist being copied: they are copied all the same, or it is said in a sentence why not."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.bigram import tokens
from tests.support.own_runs import adamw, assert_value, go, net, run_of
from trainenv.types import UserError


class Own(nn.Module):
    """The model of `net`, for others to add to."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = net()

    def forward(self, seen: Tensor) -> Tensor:
        logits: Tensor = self.out(self.words(seen))
        return logits


class Keeps(Own):
    """Keeps what it has computed, graph and all."""

    def forward(self, seen: Tensor) -> Tensor:
        self.last = super().forward(seen)
        self.cache = {"keys": [self.last * 2], "pair": (self.last.sum(), 3)}
        return self.last


class Closes(Own):
    """Calls its layers through a function that holds the module in its closure."""

    def __init__(self) -> None:
        super().__init__()
        self.call = lambda seen: self.out(self.words(seen))

    def forward(self, seen: Tensor) -> Tensor:
        logits: Tensor = self.call(seen)
        return logits


class Locked(Own):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"guard": nn.Identity()})
        self.parts["guard"].lock = threading.Lock()


class Drops(Own):
    """Holds a lock, and says how it is copied without."""

    def __init__(self) -> None:
        super().__init__()
        self.lock: Any = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"lock": None}  # type: ignore[operator, no-any-return]


class Counts(Own):
    """Non-persistent buffers that the output depends on: one that changes, one that grows."""

    steps: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()), persistent=False)
        self.register_buffer("seen", torch.zeros(0), persistent=False)
        self.register_buffer("constant", torch.tril(torch.ones(3, 3)), persistent=False)

    def forward(self, seen: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            self.seen = torch.cat([self.seen, self.steps[None]])
        return super().forward(seen) * (1 + 0.1 * self.steps + 0.1 * self.seen.sum())


def normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and much used
        words, out = net()
        return nn.Sequential(words, torch.nn.utils.weight_norm(out))


def masked() -> nn.Module:
    """Gradients of some words are masked, and a frozen parameter has a hook from before."""
    model = net()
    mask = torch.ones(8, 1)
    mask[:4] = 0
    model[0].weight.register_hook(lambda gradient: gradient * mask)

    def halve(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(0.5)

    model[1].weight.register_post_accumulate_grad_hook(halve)
    model[1].bias.register_hook(lambda gradient: gradient)
    model[1].bias.requires_grad_(False)
    return model


def shrinks() -> nn.Module:
    """A forward hook holds another module of the model in its closure."""
    model = net()
    weight = model[1].weight

    def shrink(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * weight.detach().norm()

    model[0].register_forward_hook(shrink)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": normed,
    "parametrised": lambda: nn.Sequential(
        net()[0], nn.utils.parametrizations.weight_norm(net()[1])
    ),
    "kept activations": Keeps,
    "a closure": Closes,
    "a copy of its own": Drops,
    "buffers": Counts,
    "hooks on parameters": masked,
    "a hook with a closure": shrinks,
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_copied_and_the_run_is_a_value(name: str) -> None:
    run = assert_value(lambda: run_of(MODELS[name]()))
    run.check_forkable()
    fork, before = run.fork(), run.fingerprint()
    fork.advance(3)
    assert run.fingerprint() == before
    expected = run.snapshot()
    assert go(run, 3)[1] == fork.fingerprint()
    run.restore(expected)


def test_kept_activations_lose_their_graph() -> None:
    run = run_of(Keeps())
    run.advance(2)
    model: Any = run.fork().model
    assert (model.last.grad_fn, model.cache["keys"][0].grad_fn) == (None, None)
    assert torch.equal(model.last, run.model.last)  # type: ignore[arg-type]
    assert run.model.last.grad_fn is not None  # type: ignore[union-attr]


def test_buffers_that_stay_are_in_no_snapshot() -> None:
    run = run_of(Counts())
    assert "buffers" not in run.snapshot().state
    run.advance(2)
    assert sorted(run.snapshot().state["buffers"]) == ["model.seen", "model.steps"]
    start = run_of(Counts()).snapshot()
    run.restore(start)
    assert (float(run.model.steps), run.model.seen.numel()) == (0, 0)  # type: ignore[arg-type, union-attr, operator]


class LockedSGD(torch.optim.SGD):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, 0.1)
        self.lock = threading.Lock()


class Generating:
    """A loss that holds a generator."""

    def __init__(self) -> None:
        self.numbers = (number for number in range(9))

    def __call__(self, model: nn.Module, seen: Tensor) -> Tensor:
        return F.cross_entropy(model(seen[:, :-1]).flatten(0, 1), seen[:, 1:].flatten())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            lambda: {"model": (model := Locked()), "optimizer": adamw(model)},
            "model.parts.guard.lock is a lock",
        ),
        (
            lambda: {"model": (model := net()), "optimizer": LockedSGD(model.parameters())},
            "optimizer.lock is a lock",
        ),
        (lambda: {"objective": Generating()}, "objective.numbers is a generator"),
    ],
    ids=["a module", "an optimizer", "a loss"],
)
def test_what_cannot_be_copied_is_named(parts: Callable[[], dict[str, Any]], message: str) -> None:
    run = run_of(**parts())
    run.advance(2)
    before = run.fingerprint()
    for ask in (run.check_forkable, run.fork):
        with pytest.raises(
            UserError,
            match=rf"the run cannot be forked: {message} that cannot be copied .*; keep it outside",
        ):
            ask()
    assert run.fingerprint() == before
    run.advance(1)


def test_to_ask_copies_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    run.advance(2)

    def refuse(parameter: nn.Parameter, memo: Any) -> nn.Parameter:
        raise AssertionError("a weight was copied")

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    run.check_forkable()


def test_a_loss_around_the_model_is_one_around_the_fork_s() -> None:
    model = net()

    def around(_: nn.Module, seen: Tensor) -> Tensor:
        return F.cross_entropy(model(seen[:, :-1]).flatten(0, 1), seen[:, 1:].flatten())

    run = run_of(model, objective=around)
    run.advance(2)
    fork, before = run.fork(), copy.deepcopy(model.state_dict())
    losses = [t.loss for t in fork.advance(3)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert losses == [t.loss for t in run.advance(3)] == [t.loss for t in started().advance(5)[2:]]


def started() -> Any:
    return run_of(batches=tokens)
