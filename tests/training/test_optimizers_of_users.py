"""Optimizers of a user's own: forked whole, saved with what they add, and evaluated as they ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.support.bigram import tokens
from tests.support.own_runs import adamw, assert_value, go, net, run_of
from trainenv.checkpoints.interop import export, load_weights
from trainenv.checkpoints.store import CheckpointStore
from trainenv.run import TrainingRun
from trainenv.types import Intervention


class Noisy(torch.optim.SGD):
    """Attributes of every kind, which a step reads and changes."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.noise, self.count, self.name = 0.01, 0, "noisy"
        self.generator = torch.Generator().manual_seed(3)
        self.history = {"sizes": [torch.zeros(())], "pair": (1, 2.0)}
        self.first = self.param_groups[0]["params"][0]
        self.shrink = lambda: self.first.detach().mul_(0.999)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        self.history["sizes"][0] += 1  # type: ignore[index, operator]
        scale = self.noise * self.count + float(self.history["sizes"][0])  # type: ignore[index, arg-type]
        for p in self.param_groups[0]["params"]:
            p.grad.add_(torch.randn(p.shape, generator=self.generator), alpha=1e-3 * scale)
        super().step()
        self.shrink()


class Lookahead(Optimizer):
    """An optimizer around another, whose groups and state it shares."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.param_groups, self.state, self.count = (
            inner,
            inner.param_groups,
            inner.state,
            0,
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()
        self.count += 1
        for p in self.param_groups[0]["params"]:
            slow = self.state[p].setdefault("slow", p.detach().clone())
            if self.count % 3 == 0:
                p.copy_(slow.lerp_(p, 0.5))


class Delegating(Lookahead):
    """One whose state is saved and loaded by the optimizer inside."""

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)


class Averaging(Optimizer):
    """Schedule-free SGD (Defazio 2024): trains at one point, and stands for another."""

    def __init__(self, parameters: Any, lr: float = 0.5) -> None:
        super().__init__(parameters, {"lr": lr, "beta": 0.9, "train_mode": False})

    def eval(self) -> None:
        self._turn(False, lambda beta: 1 - 1 / beta)

    def train(self) -> None:
        self._turn(True, lambda beta: 1 - beta)

    @torch.no_grad()
    def _turn(self, mode: bool, weight: Callable[[float], float]) -> None:
        for group in self.param_groups:
            for p in group["params"] if group["train_mode"] is not mode else ():
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], weight(group["beta"]))
            group["train_mode"] = mode

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            assert group["train_mode"], "call train() first"
            for p in group["params"]:
                state = self.state[p]
                z = state.setdefault("z", p.clone())
                state["k"] = state.get("k", 0) + 1
                p.lerp_(z, 1 - 1 / group["beta"])
                z.sub_(p.grad, alpha=group["lr"])
                p.lerp_(z, 1 / state["k"]).lerp_(z, 1 - group["beta"])


def hooked(model: nn.Module) -> Optimizer:
    """A hook that holds the model in its closure."""
    optimizer = adamw(model)

    def shrink(*_: Any) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(0.99)

    optimizer.register_step_post_hook(shrink)
    return optimizer


def scheduled(model: nn.Module) -> Optimizer:
    optimizer = adamw(model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
    return optimizer


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "attributes": lambda model: Noisy(model.parameters(), 0.1),
    "around another": lambda model: Lookahead(adamw(model)),
    "around another that saves and loads": lambda model: Delegating(adamw(model)),
    "averaging": lambda model: Averaging(model.parameters()),
    "a hook": hooked,
    "a scheduler": scheduled,
    "Adafactor": lambda model: torch.optim.Adafactor(model.parameters(), 1e-2),
    "Muon": lambda model: torch.optim.Muon([p for p in model.parameters() if p.dim() == 2], 1e-2),
    "Rprop": lambda model: torch.optim.Rprop(model.parameters(), 1e-3),
    "foreach": lambda model: torch.optim.AdamW(model.parameters(), 1e-2, foreach=True),
    "fused": lambda model: torch.optim.AdamW(model.parameters(), 1e-2, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_with_it_is_a_value(name: str) -> None:
    def make() -> TrainingRun:
        model = net()
        return run_of(model, OPTIMIZERS[name](model), probe=tokens(98))

    run = assert_value(make)
    fork, before = run.fork(), run.fingerprint()
    fork.apply(Intervention(lr_scale=0.5, momentum_reset=True))
    fork.advance(3)
    assert run.fingerprint() == before  # what the fork did is its own


@pytest.mark.parametrize("name", ["attributes", "around another", "averaging"])
def test_its_state_goes_through_a_file(name: str, tmp_path: Path) -> None:
    def make() -> TrainingRun:
        model = net()
        return run_of(model, OPTIMIZERS[name](model))

    run, other, store = make(), make(), CheckpointStore(tmp_path, moments="exact")
    run.advance(3)
    store.save(run.snapshot())
    other.restore(store.load())
    assert go(other, 3) == go(run, 3)


def test_a_fork_has_all_attributes() -> None:
    model = net()
    run = run_of(model, Noisy(model.parameters(), 0.1))
    run.advance(2)
    ours, theirs = run.optimizer, run.fork().optimizer
    assert vars(theirs).keys() == vars(ours).keys()
    assert (theirs.noise, theirs.count, theirs.name) == (0.01, 2, "noisy")  # type: ignore[attr-defined]
    assert theirs.first is theirs.param_groups[0]["params"][0]  # type: ignore[attr-defined]
    assert theirs.generator is not ours.generator  # type: ignore[attr-defined]


def test_an_optimizer_inside_stays_the_one_that_is_steered() -> None:
    model = net()
    run = run_of(model, Lookahead(adamw(model)))
    run.advance(2)
    run.restore(run.snapshot())
    for one in (run, run.fork()):
        assert one.optimizer.inner.param_groups is one.optimizer.param_groups  # type: ignore[attr-defined]
        assert one.optimizer.inner.state is one.optimizer.state  # type: ignore[attr-defined]


# ── a scheduler that was attached before ────────────────────────────────────────────────────────────────────────────


def test_the_base_rate_is_that_from_before_the_scheduler() -> None:
    model = net()
    run = run_of(model, scheduled(model))
    assert (run.base_lr, run.advance(5)[-1].lr) == (1e-2, pytest.approx(1e-2, rel=0.1))
    plain = run_of()
    plain.advance(5)
    assert [
        torch.equal(a, b) for a, b in zip(run.model.parameters(), plain.model.parameters())
    ] == [True] * 3
    before = run.fingerprint()
    run.fork().advance(2)
    assert run.fingerprint() == before  # the scheduler's own `step` would have stepped this one


# ── one that evaluates other weights than it trains ─────────────────────────────────────────────────────────────────


def averaging() -> TrainingRun:
    model = net()
    run = run_of(model, Averaging(model.parameters()), probe=tokens(98))
    run.advance(8)
    return run


@contextmanager
def turned(run: TrainingRun) -> Iterator[dict[str, Tensor]]:
    run.optimizer.eval()  # type: ignore[attr-defined]
    yield {name: value.clone() for name, value in run.model.state_dict().items()}
    run.optimizer.train()  # type: ignore[attr-defined]


def test_its_own_weights_are_evaluated_and_nothing_is_changed() -> None:
    run = averaging()
    before, found = run.fingerprint(), run.evaluate()
    assert run.fingerprint() == before
    other = averaging()
    with turned(other):
        assert other.evaluate() == found
        assert not other.optimizer.param_groups[0]["train_mode"]  # as it was found
    assert abs(found - run_with(other.model)) > 1e-4  # of the weights that are trained


def run_with(model: nn.Module) -> float:
    plain = run_of()
    plain.model.load_state_dict(model.state_dict())
    return plain.evaluate()


def test_its_own_weights_are_probed() -> None:
    run = averaging()
    probed = run.advance(1)[-1].probe_loss
    run.optimizer.eval()  # type: ignore[attr-defined]
    plain = run_of(validation=[tokens(98)])
    plain.model.load_state_dict(run.model.state_dict())
    assert probed == pytest.approx(plain.evaluate(), rel=1e-6)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_its_own_weights_are_exported(ending: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = averaging()
    path = export(run.snapshot(), tmp_path / f"w.{ending}")
    weights = torch.load(path, weights_only=True)["model"] if ending == "pt" else load_file(path)
    with turned(averaging()) as expected:
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
    if ending == "pt":
        other = averaging()
        other.advance(2)
        load_weights(other, path)
        assert all(
            torch.equal(a, b) for a, b in zip(other.model.parameters(), run.model.parameters())
        )


def test_a_wrapper_s_rates_reach_the_optimizer_inside_after_a_restore() -> None:
    model = net()
    wrapper = Delegating(adamw(model))
    run = run_of(model, wrapper)
    run.restore(run.snapshot())
    assert wrapper.inner.param_groups is wrapper.param_groups
    assert wrapper.inner.state is wrapper.state
