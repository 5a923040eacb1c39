"""Attributes that an optimizer of a user's own keeps, in every form: saved, restored, forked and written to a file."""

from __future__ import annotations

import random
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from tests.support.own_runs import adamw, assert_value, go, net, run_of
from trainenv.checkpoints.store import CheckpointStore
from trainenv.run import TrainingRun
from trainenv.training import optimizers

Pair = namedtuple("Pair", "mean count")
Phase = Enum("Phase", "EARLY LATE")


class Keeping(torch.optim.SGD):
    """Scales its gradients by what it keeps: `start` makes that, `use` changes it and returns the scale."""

    def __init__(
        self, parameters: Any, start: Callable[[Any], Any], use: Callable[[Any], float]
    ) -> None:
        super().__init__(parameters, lr=0.1)
        self._kept, self._use = start(self), use

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        scale = self._use(self)
        for p in self.param_groups[0]["params"]:
            p.grad.mul_(1 + scale)
        super().step()


def by_parameter(self: Any) -> float:
    for p in self.param_groups[0]["params"]:
        self._kept.setdefault(p, torch.zeros_like(p)).mul_(0.9).add_(p.grad)
    return float(sum(buffer.norm() for buffer in self._kept.values()))


def by_id(self: Any) -> float:
    for p in self.param_groups[0]["params"]:
        self._kept[id(p)] = self._kept.get(id(p), 0.0) + float(p.grad.norm())
    return sum(self._kept.values()) + len(self._kept)


def keyed(*keys: Any) -> Callable[[Any], float]:
    def use(self: Any) -> float:
        for place, key in enumerate(keys):
            self._kept[key] = self._kept.get(key, 0) + place + 1
        return 0.01 * sum(self._kept.values())

    return use


def queued(self: Any) -> float:
    self._kept.append(float(self.param_groups[0]["params"][0].grad.norm()))
    return sum(self._kept) + 0.1 * len(self._kept)


def array(self: Any) -> float:
    self._kept *= 1.5
    return 0.01 * float(self._kept.sum())


def member(self: Any) -> float:
    self._kept.add(len(self._kept))
    return 0.1 * len(self._kept)


def replaced(change: Callable[[Any], Any], scale: Callable[[Any], Any]) -> Callable[[Any], float]:
    def use(self: Any) -> float:
        self._kept = change(self._kept)
        return float(scale(self._kept))

    return use


def drawn(self: Any) -> float:
    return float(self._kept.random())


def lazily(self: Any) -> float:
    if not hasattr(self, "_lazy"):
        self._lazy = {"seen": []}
    self._lazy["seen"].append(1)
    return 0.1 * len(self._lazy["seen"])


def together(self: Any) -> float:
    """One list under two names, a cell of it seen by a function, and a lock and a function beside numbers."""
    if isinstance(self._kept, list):
        shared = [0.0]
        self._kept = {"one": shared, "two": shared, "call": lambda: shared[0], "count": 0}
        self._lock_like = self._kept["call"]
    self._kept["one"][0] += 0.1
    self._kept["count"] += 1
    return float(self._kept["two"][0] + self._kept["call"]())


def nested(self: Any) -> float:
    inner = self._kept["a", 1]
    inner[2] = (*inner.get(2, ()), np.float32(len(inner) + 0.1))
    self._kept["by"][self.param_groups[0]["params"][-1]].append(deque([len(inner)], maxlen=2))
    return float(sum(inner[2])) + len(self._kept["by"])


FORMS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], float]]] = {
    "a dict by parameter": (lambda self: {}, by_parameter),
    "a weak dict by parameter": (lambda self: WeakTensorKeyDictionary(), by_parameter),
    "a dict by the id of a parameter": (lambda self: {}, by_id),
    "a dict by int": (lambda self: {}, keyed(0, 7)),
    "a dict by tuple": (lambda self: {}, keyed((0, "a"), (1, "b/c"), ((2,), None))),
    "a dict by text with slashes and tags": (
        lambda self: {},
        keyed("a/b", "__tensor__", "<deque>"),
    ),
    "a dict by type and device": (
        lambda self: {},
        keyed((torch.device("cpu"), torch.float32), torch.float16),
    ),
    "a counter": (lambda self: Counter(), keyed("x", "y")),
    "an ordered dict": (lambda self: OrderedDict(), keyed(2, 1)),
    "a deque": (lambda self: deque(maxlen=4), queued),
    "a list": (lambda self: [], queued),
    "an array": (lambda self: np.linspace(0, 1, 5), array),
    "an array in Fortran's order": (
        lambda self: np.asfortranarray(np.ones((2, 3), np.float32)),
        array,
    ),
    "a set": (lambda self: {0}, member),
    "a frozen set": (
        lambda self: frozenset(),
        replaced(lambda kept: kept | {len(kept)}, lambda kept: 0.1 * len(kept)),
    ),
    "a scalar of NumPy": (
        lambda self: np.float32(0.1),
        replaced(lambda kept: kept * np.float32(1.1), lambda kept: kept),
    ),
    "a large int": (
        lambda self: 2**70,
        replaced(lambda kept: kept * 3, lambda kept: kept % 1009 / 1009),
    ),
    "a complex": (lambda self: 0.5 + 0.1j, replaced(lambda kept: kept * 1.1j, abs)),
    "bytes": (lambda self: b"", replaced(lambda kept: kept + b"x", lambda kept: 0.1 * len(kept))),
    "a named tuple": (
        lambda self: Pair(0.0, 0),
        replaced(
            lambda kept: Pair(kept.mean + 0.5, kept.count + 1), lambda kept: kept.mean / kept.count
        ),
    ),
    "an enum": (
        lambda self: Phase.EARLY,
        replaced(lambda kept: Phase.LATE, lambda kept: 0.1 * kept.value),
    ),
    "PCG64": (lambda self: np.random.default_rng(3), drawn),
    "Philox": (lambda self: np.random.Generator(np.random.Philox(3)), drawn),
    "MT19937": (lambda self: np.random.Generator(np.random.MT19937(3)), drawn),
    "NumPy's old generator": (
        lambda self: np.random.RandomState(3),
        lambda self: self._kept.randn(),
    ),
    "Python's generator": (lambda self: random.Random(3), drawn),
    "torch's generator": (
        lambda self: [torch.Generator().manual_seed(3)],
        lambda self: float(torch.rand((), generator=self._kept[0])),
    ),
    "a tensor whose elements are one": (
        lambda self: torch.zeros(1).expand(3),
        replaced(lambda kept: (kept[:1] + 0.1).expand(3), lambda kept: kept.sum()),
    ),
    "a parameter of its own": (
        lambda self: nn.Parameter(torch.ones(2)),
        lambda self: float(self._kept.detach().mul_(1.1).sum()),
    ),
    "the parameter in turn": (
        lambda self: self.param_groups[0]["params"][0],
        lambda self: float(turn(self).norm()),
    ),
    "what comes later": (lambda self: None, lazily),
    "what is shared": (lambda self: [], together),
    "nested": (lambda self: {("a", 1): {}, "by": defaultdict(list)}, nested),
}


def turn(self: Any) -> Tensor:
    parameters = self.param_groups[0]["params"]
    place = next(place for place, p in enumerate(parameters) if p is self._kept)
    self._kept = parameters[(place + 1) % len(parameters)]
    return self._kept.detach()


def run_with(form: str) -> TrainingRun:
    model = net()
    return run_of(model, Keeping(model.parameters(), *FORMS[form]))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "what is shared"])
def test_a_run_that_keeps_it_is_a_value(form: str, tmp_path: Path) -> None:
    run = assert_value(lambda: run_with(form))
    store, other = CheckpointStore(tmp_path, moments="exact"), run_with(form)
    store.save(run.snapshot())
    other.restore(store.load())
    assert type(other.optimizer._kept) is type(run.optimizer._kept)  # type: ignore[attr-defined]
    assert go(other, 3) == go(run, 3)


@pytest.mark.parametrize("form", ["a dict by parameter", "a deque", "PCG64", "a set"])
def test_without_it_the_run_ends_elsewhere(form: str) -> None:
    run = run_with(form)
    run.advance(3)
    snapshot = run.snapshot()
    del snapshot.state["optimizer"]["attributes"]  # type: ignore[attr-defined]
    other = run_with(form)
    expected = run.advance(4)
    other.restore(snapshot)
    assert [t.loss for t in other.advance(4)] != [t.loss for t in expected]


def test_what_comes_later_goes_with_a_restore_to_before_it() -> None:
    run = run_with("what comes later")
    start = run.snapshot()
    expected = go(run, 3)
    run.restore(start)
    assert not hasattr(run.optimizer, "_lazy")
    assert go(run, 3) == expected


def test_a_container_stays_the_one_that_others_hold() -> None:
    run = run_with("what is shared")
    run.advance(3)
    snapshot, expected = run.snapshot(), go(run, 3)
    run.restore(snapshot)
    kept = run.optimizer._kept  # type: ignore[attr-defined]
    assert kept["one"] is kept["two"]
    assert go(run, 3) == expected  # by what the function in it holds


class Two(Optimizer):
    """Two optimizers in one, each with groups, state and attributes of its own."""

    def __init__(self, model: nn.Module) -> None:
        first, *rest = model.parameters()
        start, use = FORMS["a dict by parameter"]
        self._parts = [Keeping([first], start, use), torch.optim.AdamW(rest, 1e-2)]
        super().__init__(list(model.parameters()), {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()


def test_optimizers_inside_are_saved_with_what_they_keep(tmp_path: Path) -> None:
    def make() -> TrainingRun:
        model = net()
        return run_of(model, Two(model))

    run, store, other = assert_value(make), CheckpointStore(tmp_path, moments="exact"), make()
    store.save(run.snapshot())
    other.restore(store.load())
    assert go(other, 3) == go(run, 3)


@pytest.mark.parametrize(
    "kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor, torch.optim.LBFGS]
)
def test_torch_s_own_optimizers_have_no_attributes(kind: Any) -> None:
    assert "attributes" not in optimizers.state_of(kind(net().parameters(), lr=0.1))
    matrices = [p for p in net().parameters() if p.dim() == 2]
    assert "attributes" not in optimizers.state_of(torch.optim.Muon(matrices, lr=0.1))


def test_what_cannot_be_saved_is_left_as_it_is() -> None:
    model = net()
    run = run_of(model, adamw(model))
    optimizer: Any = run.optimizer
    loop: list[Any] = []
    loop.append(loop)
    optimizer._lock, optimizer._loop, optimizer._odd, optimizer._count = (
        threading.Lock(),
        loop,
        [object()],
        1,
    )
    optimizer._sparse, optimizer._masked = (
        torch.eye(2).to_sparse(),
        np.ma.masked_array([1, 2], [True, False]),
    )
    snapshot = run.snapshot()
    lock, optimizer._count = optimizer._lock, 2
    run.restore(snapshot)
    assert (
        optimizer._lock is lock,
        optimizer._loop is loop,
        len(optimizer._odd),
        optimizer._count,
    ) == (True, True, 1, 1)


def test_attributes_saved_before_there_were_tags_are_loaded() -> None:
    optimizer: Any = Keeping(net().parameters(), lambda self: 5, drawn)
    optimizer.generator, optimizer.pair, optimizer.later = (
        torch.Generator().manual_seed(1),
        (0, 0),
        1,
    )
    saved = {
        "generator": {"generator": torch.Generator().manual_seed(4).get_state()},
        "pair": [1, 2.0],
        "table": {"a": [1]},
    }
    optimizers.load_state(optimizer, {**optimizer.state_dict(), "attributes": saved})
    assert (optimizer.pair, optimizer.table, optimizer.later, optimizer._kept) == (
        (1, 2.0),
        {"a": [1]},
        1,
        5,
    )
    assert optimizer.generator.initial_seed() == 4
