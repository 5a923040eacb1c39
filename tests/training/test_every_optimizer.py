"""Contract of every optimizer: runs with it are values, in memory, in files and in forks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import schedulefree
import torch
from torch import nn
from torch.optim import Optimizer

from tests.support.own_runs import adamw, assert_value, config, go, run_of
from trainenv.checkpoints.store import CheckpointStore
from trainenv.run import TrainingRun
from trainenv.training.chained_optimizer import ChainedOptimizer
from trainenv.training.optimizers import kind_of
from trainenv.types import Intervention, UserError

Make = Callable[[nn.Module], Any]


def wide() -> nn.Sequential:
    """A net whose matrices are large enough for 8-bit states: 4096 elements and more."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(8, 16), nn.Linear(16, 256), nn.GELU(), nn.Linear(256, 16), nn.Linear(16, 8)
    )


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("0")]


def others(model: nn.Module) -> list[nn.Parameter]:
    taken = {id(p) for p in matrices(model)}
    return [p for p in model.parameters() if id(p) not in taken]


def muon_and_adamw(model: nn.Module) -> list[Optimizer]:
    return [
        torch.optim.Muon(matrices(model), lr=0.02, weight_decay=0.1),
        torch.optim.AdamW(others(model), lr=3e-3),
    ]


class Signs:
    """An optimizer by its methods alone, of no class of torch's."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups = [{"params": list(parameters), "lr": 1e-3}]
        self.state: dict[Any, Any] = {p: {"last": torch.zeros_like(p)} for p in parameters}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    last = self.state[p]["last"]
                    p.sub_(group["lr"] * (p.grad + 0.9 * last).sign())
                    last.copy_(p.grad)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def state_dict(self) -> dict[str, Any]:
        (group,) = self.param_groups
        places = range(len(group["params"]))
        return {
            "state": {place: dict(self.state[group["params"][place]]) for place in places},
            "param_groups": [group | {"params": list(places)}],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        (group,) = self.param_groups
        (saved,) = state["param_groups"]
        group.update({name: value for name, value in saved.items() if name != "params"})
        for place, p in enumerate(group["params"]):
            self.state[p] = dict(state["state"][place])


MAKE: dict[str, Make] = {
    "adamw": adamw,
    "adamw fused": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, fused=True),
    "adam amsgrad": lambda m: torch.optim.Adam(m.parameters(), 1e-2, amsgrad=True),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 0.1),
    "sgd momentum": lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, nesterov=True),
    "adafactor": lambda m: torch.optim.Adafactor(m.parameters(), 1e-2),
    "muon and adamw": muon_and_adamw,
    "8-bit adamw": lambda m: bitsandbytes.optim.AdamW8bit(m.parameters(), 1e-2),
    "schedule-free": lambda m: schedulefree.AdamWScheduleFree(m.parameters(), lr=1e-2),
    "schedule-free and sgd": lambda m: [
        schedulefree.AdamWScheduleFree(matrices(m), lr=1e-2),
        torch.optim.SGD(others(m), 0.1, momentum=0.9),
    ],
    "by methods": lambda m: Signs(list(m.parameters())),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), 1e-3, momentum=0.9),
}

every = pytest.mark.parametrize("name", MAKE)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():  # of bitsandbytes, on machines without a GPU
        warnings.filterwarnings("ignore", message=".*_check_is_size", category=FutureWarning)
        yield


def steps_of_three(index: int) -> torch.Tensor:
    """Return sequences in which each token is three more than the one before."""
    start = torch.randint(0, 8, (4, 1), generator=torch.Generator().manual_seed(index))
    return (start + 3 * torch.arange(9)) % 8


SMALL = {"model": {"width": 16, "layers": 1, "heads": 2, "context": 16}, "batch_size": 4}


def made(name: str) -> TrainingRun:
    model = wide()
    validation = [steps_of_three(99)]
    return run_of(model, MAKE[name](model), batches=steps_of_three, validation=validation)


@every
def test_a_run_is_a_value(name: str) -> None:
    assert_value(lambda: made(name))


@every
def test_it_trains_and_a_checkpoint_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    run = made(name)
    before = run.evaluate()
    run.advance(5)
    with CheckpointStore(tmp_path, moments="exact") as store:
        store.save(run.snapshot(), wait=True)
        snapshot = store.load()
    expected = go(run, 10)
    other = made(name)
    other.restore(snapshot)
    assert go(other, 10) == expected
    run.advance(25)
    assert run.evaluate() < before - 0.02


@every
def test_interventions_hold_and_are_part_of_the_state(name: str) -> None:
    def steered() -> TrainingRun:
        run = made(name)
        run.advance(2)
        rates = [group["lr"] for group in run.optimizer.param_groups]
        run.apply(Intervention(lr_scale=0.5, momentum_reset=True, clip="zclip"))
        run.advance(9)
        assert len(rates) == len(run.optimizer.param_groups)
        assert run.lr_scale == 0.5
        return run

    run = steered()
    fork = run.fork()
    assert go(run, 3) == go(fork, 3)


KEPT = ("step", "z", "state1", "state2", "qmap1", "qmap2")


@every
def test_a_reset_zeroes_every_moment_and_the_step_count(name: str) -> None:
    run = made(name)
    run.advance(8)
    run.apply(Intervention(momentum_reset=True))
    moments = 0
    for state in run.optimizer.state.values():
        assert float(state.get("step", 0)) == 0
        for key, moment in state.items():
            if key == "last":  # of an optimizer whose names nobody knows
                continue
            moments += 1
            if isinstance(moment, torch.Tensor) and not (
                key in KEPT and moment.dtype != torch.float32
            ):
                assert key == "z" or key.startswith("qmap") or not moment.any(), key
    assert moments or name in ("sgd", "by methods")
    before = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    run.advance(1)  # the first of the warm-up after a reset: its update is small
    after = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    assert float((after - before).abs().max()) < 0.05


def test_negative_control_a_chain_that_loses_the_state_of_a_part_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = ChainedOptimizer.state_dict

    def without_muon(self: ChainedOptimizer) -> dict[str, Any]:
        state = whole(self)
        first = state["state"].keys() & {0}
        return state | {"state": {k: v for k, v in state["state"].items() if k not in first}}

    monkeypatch.setattr(ChainedOptimizer, "state_dict", without_muon)
    with pytest.raises(AssertionError):
        assert_value(lambda: made("muon and adamw"))


def test_a_chain_is_one_optimizer() -> None:
    model = wide()
    muon, adam = muon_and_adamw(model)
    run = run_of(model, [muon, adam], config=config(schedule={"kind": "constant", "warmup": 0}))
    chain = run.optimizer
    assert isinstance(chain, ChainedOptimizer)
    assert chain.param_groups == [*muon.param_groups, *adam.param_groups]
    assert repr(chain).startswith("ChainedOptimizer([Muon")
    run.apply(Intervention(lr_scale=0.5))
    run.advance(1)
    assert (muon.param_groups[0]["lr"], adam.param_groups[0]["lr"]) == (0.01, 1.5e-3)
    assert len(chain.state) == len(list(model.parameters()))
    assert run.base_lr == 0.02
    extra = nn.Parameter(torch.zeros(3))
    chain.add_param_group({"params": [extra], "lr": 0.1})
    assert adam.param_groups[-1]["params"] == [extra]


def test_a_snapshot_of_other_optimizers_is_refused() -> None:
    snapshot = made("muon and adamw").snapshot()
    model = wide()
    other = run_of(
        model, [torch.optim.SGD(matrices(model), 0.1), torch.optim.AdamW(others(model), 1e-2)]
    )
    with pytest.raises(UserError, match=r"expected SGD \+ AdamW, found Muon \+ AdamW"):
        other.restore(snapshot)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "found a list with none"),
        ([3], "found a list with a int"),
        ("twice", "must hold each parameter once"),
    ],
)
def test_wrong_lists_are_refused(given: Any, message: str) -> None:
    model = wide()
    optimizer = [adamw(model), adamw(model)] if given == "twice" else given
    with pytest.raises(UserError, match=message):
        TrainingRun(model, optimizer, lambda index: torch.zeros(2, 9).long(), config())


def test_schedule_free_weights_are_evaluated_in_a_chain_too() -> None:
    run = made("schedule-free and sgd")
    run.advance(20)
    weights = [p.detach().clone() for p in run.model.parameters()]
    as_evaluated = run.evaluate()
    assert all(torch.equal(a, b) for a, b in zip(weights, run.model.parameters(), strict=True))
    run.optimizer.eval()  # type: ignore[attr-defined]
    assert run.evaluate() == as_evaluated
    assert any(not torch.equal(a, b) for a, b in zip(weights, run.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", "AdamW"),
        ("adam", "Adam"),
        ("sgd", "SGD"),
        ("adafactor", "Adafactor"),
        ("muon", "Muon + AdamW"),
        ("adamw_8bit", "AdamW8bit"),
        ("schedule_free", "AdamWScheduleFree"),
    ],
)
def test_optimizers_have_names_in_the_configuration(name: str, kind: str) -> None:
    run = TrainingRun.from_config("tiny", {"optimizer.name": name, "steps": 30} | SMALL)
    assert kind_of(run.optimizer) == kind
    first = run.evaluate()
    run.advance(6)
    fork = run.fork()
    assert go(run, 3) == go(fork, 3)
    assert run.evaluate() < first
    every = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in every} == {id(p) for p in run.model.parameters()}
    if name == "muon":
        shape = run.model.transformer.wte.weight  # type: ignore[attr-defined]
        assert all(p is not shape for p in run.optimizer.param_groups[0]["params"])
        assert all(p.ndim == 2 for p in run.optimizer.param_groups[0]["params"])
