"""The optimizer: what decays, what a reset means, and that loading shares nothing."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainenv.config.schema import OptimizerConfig, RunConfig
from trainenv.models import build
from trainenv.training import optimizers
from trainenv.training.snapshots import capture, expand, fingerprint, tensors_of
from trainenv.types import Snapshot

CPU = torch.device("cpu")


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def train(model: nn.Module, optimizer: Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        tokens = torch.randint(0, 7, (5,), generator=generator)
        optimizer.zero_grad()
        (model(tokens) - torch.randn(5, 3, generator=generator)).square().mean().backward()
        optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two))


def test_matrices_decay_and_nothing_else() -> None:
    model = build.build(RunConfig.load("tiny"), 256, CPU)
    optimizer = optimizers.adamw(
        model, OptimizerConfig(lr=1e-3, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6)
    )
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert (
        len(decay)
        == len(list(model.parameters()))
        == sum(len(group["params"]) for group in optimizer.param_groups)
    )
    for name, parameter in model.named_parameters():
        kept = "wpe" in name or name.endswith("bias") or "ln_" in name
        assert decay[id(parameter)] == (0.0 if kept else 0.3), name
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (
            1e-3,
            (0.8, 0.9),
            1e-6,
            True,
        )


def test_frozen_parameters_are_left_out_and_empty_groups_too() -> None:
    model = net()
    model[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    assert (
        sum(
            len(group["params"])
            for group in optimizers.adamw(model, OptimizerConfig(lr=1e-3)).param_groups
        )
        == 4
    )
    assert (
        len(optimizers.adamw(nn.Linear(3, 3, bias=False), OptimizerConfig(lr=1e-3)).param_groups)
        == 1
    )


def test_a_step_is_adamw_s() -> None:
    one, two = net(), net()
    config = OptimizerConfig(lr=1e-2, weight_decay=0.1)
    plain = AdamW(
        [
            {"params": [p for p in two.parameters() if p.dim() >= 2]},
            {"params": [p for p in two.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
    )
    train(one, optimizers.adamw(one, config), 5)
    train(two, plain, 5)
    for ours, theirs in zip(weights(one), weights(two)):
        torch.testing.assert_close(ours, theirs)


def test_rates_are_base_times_factor_however_often_they_are_set() -> None:
    model = net()
    optimizer = optimizers.adamw(model, OptimizerConfig(lr=0.1, weight_decay=0.2))
    base = optimizers.base_rates(optimizer)
    assert base == [(0.1, 0.2), (0.1, 0.0)]
    for _ in range(3):
        optimizers.set_rates(optimizer, base, 0.5, 2.0)
    assert optimizers.base_rates(optimizer) == [(0.05, 0.4), (0.05, 0.0)]


def test_rates_held_in_tensors_are_written_in_place() -> None:
    rate = torch.tensor(0.1)
    optimizer = Adam(net().parameters(), lr=rate)
    optimizers.set_rates(optimizer, optimizers.base_rates(optimizer), 0.5, 1.0)
    assert rate.item() == pytest.approx(0.05)
    assert optimizer.param_groups[0]["lr"] is rate


def test_no_weight_decay_is_made_up() -> None:
    optimizer = SGD(net().parameters(), lr=0.1)
    del optimizer.param_groups[0]["weight_decay"]
    optimizers.set_rates(optimizer, optimizers.base_rates(optimizer), 0.5, 2.0)
    assert "weight_decay" not in optimizer.param_groups[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: AdamW(p, lr=1e-2, fused=True),
        lambda p: AdamW(p, lr=1e-2, foreach=False),
        lambda p: Adam(p, lr=1e-2, amsgrad=True),
        lambda p: SGD(p, lr=1e-2, momentum=0.9),
    ],
)
def test_after_a_reset_it_steps_like_a_new_one(make: Any) -> None:
    model = net()
    optimizer = make(model.parameters())
    train(model, optimizer, 5)
    twin = copy.deepcopy(model)
    fresh = make(twin.parameters())
    optimizers.reset_moments(optimizer)
    for entry in optimizer.state.values():
        assert all(not value.any() for value in entry.values() if isinstance(value, Tensor))
    train(model, optimizer, 3, seed=9)
    train(twin, fresh, 3, seed=9)
    assert equal(weights(model), weights(twin))


def test_a_step_count_that_is_no_tensor_is_reset_too() -> None:
    optimizer = Adam(net().parameters())
    for parameter in optimizer.param_groups[0]["params"]:
        optimizer.state[parameter] = {"step": 5, "exp_avg": torch.ones_like(parameter)}
    optimizers.reset_moments(optimizer)
    assert all(entry["step"] == 0 for entry in optimizer.state.values())


def test_a_reset_before_the_first_step_does_nothing() -> None:
    optimizer = Adam(net().parameters())
    optimizers.reset_moments(optimizer)
    assert not optimizer.state


@pytest.mark.parametrize("through_snapshot", [False, True])
def test_loading_goes_on_bit_for_bit(through_snapshot: bool) -> None:
    config = OptimizerConfig(lr=1e-2)
    model = net()
    optimizer = optimizers.adamw(model, config)
    train(model, optimizer, 4)
    state = copy.deepcopy(optimizer.state_dict())
    if through_snapshot:
        snapshot = capture(0, state)
        json.dumps(snapshot.state)
        state = expand(snapshot)
    twin = copy.deepcopy(model)
    other = optimizers.adamw(twin, config)
    optimizers.load_state(other, state)
    assert other.param_groups[0]["betas"] == (0.9, 0.95)
    train(model, optimizer, 3, seed=1)
    train(twin, other, 3, seed=1)
    assert equal(weights(model), weights(twin))


def test_loading_shares_nothing() -> None:
    config = OptimizerConfig(lr=1e-2)
    model = net()
    optimizer = optimizers.adamw(model, config)
    train(model, optimizer, 2)
    snapshot = capture(0, optimizer.state_dict())
    before = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    twin = copy.deepcopy(model)
    other = optimizers.adamw(twin, config)
    optimizers.load_state(other, expand(snapshot))
    train(twin, other, 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot.tensors.items())
    expected = [entry["exp_avg"].clone() for entry in other.state.values()]
    for tensor in snapshot.tensors.values():
        tensor.fill_(9.0)
    assert equal(expected, [entry["exp_avg"] for entry in other.state.values()])


# ── loading into what is there ──────────────────────────────────────────────────────────────────────────────────────


class Mixed(Optimizer):
    """State in another dtype than the parameters, in nested lists, and a tensor that all parameters share."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": torch.tensor(0.1), "betas": (torch.tensor(0.5), 0.25)})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        count = next((entry["count"] for entry in self.state.values()), torch.zeros(()))
        count += 1
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    entry = self.state[parameter]
                    entry.setdefault("mean", torch.zeros(parameter.shape, dtype=torch.float64))
                    entry.setdefault("history", [torch.zeros_like(parameter), torch.zeros(2)])
                    entry["count"] = count
                    entry["mean"].mul_(0.9).add_(parameter.grad, alpha=1 / float(entry["count"]))
                    entry["history"][0].add_(parameter.grad)
                    parameter.add_(
                        (entry["mean"] + entry["history"][0]).to(parameter.dtype),
                        alpha=-float(group["lr"]),
                    )


MAKERS: dict[str, Any] = {
    "fused": lambda p: AdamW(p, lr=1e-2, fused=True),
    "plain": lambda p: AdamW(p, lr=1e-2, foreach=False),
    "amsgrad": lambda p: Adam(p, lr=1e-2, amsgrad=True),
    "tensor rate": lambda p: Adam(p, lr=torch.tensor(1e-2), betas=(0.8, 0.9)),
    "sgd": lambda p: SGD(p, lr=1e-2),
    "momentum": lambda p: SGD(p, lr=1e-2, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5, centered=True),
    "mixed": Mixed,
}


def saved(optimizer: Optimizer) -> Snapshot:
    return capture(0, optimizer.state_dict())


def addresses(optimizer: Optimizer) -> set[int]:
    return {
        t.data_ptr()
        for t in tensors_of([list(optimizer.state.values()), optimizer.param_groups])
        if t.numel()
    }


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize("after", [0, 3])
def test_loading_into_what_is_there(name: str, at: int, after: int) -> None:
    """From any moment back to any other, in place; the run and one that never stepped go on alike."""
    model = net()
    optimizer = MAKERS[name](list(model.parameters()))
    train(model, optimizer, at)
    snapshot, start = saved(optimizer), copy.deepcopy(model.state_dict())
    mark = fingerprint(snapshot)
    train(model, optimizer, 2, seed=1)
    expected, state = weights(model), fingerprint(saved(optimizer))
    train(model, optimizer, after, seed=2)
    fresh = net(1)
    other = MAKERS[name](list(fresh.parameters()))
    for module, loaded in ((model, optimizer), (fresh, other)):
        module.load_state_dict(start)
        before = addresses(loaded)
        optimizers.load_state(loaded, expand(snapshot))
        assert fingerprint(saved(loaded)) == mark
        assert not addresses(loaded) & {t.data_ptr() for t in snapshot.tensors.values()}
        if loaded is optimizer and at:
            assert addresses(loaded) == before  # nothing was allocated
        assert len(loaded.state) == len(snapshot.state["state"])
        train(module, loaded, 2, seed=1)
        assert equal(weights(module), expected)
        assert fingerprint(saved(loaded)) == state
    assert fingerprint(snapshot) == mark


def test_entries_that_the_state_lacks_go() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 1)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["momentum_buffer"] = None
    del state["state"][1]
    optimizer.state[next(iter(model.parameters()))]["extra"] = torch.ones(3)
    optimizers.load_state(optimizer, expand(capture(0, state)))
    entries = [optimizer.state.get(p) for p in model.parameters()]
    assert entries[0] == {"momentum_buffer": None}
    assert entries[1] is None
    assert entries[2] is not None
    train(model, optimizer, 1)


def test_tensors_stay_as_many_as_they_were() -> None:
    """Shared ones stay one, in a fresh optimizer too; what only the live one shares is taken apart."""
    model, twin = net(), net()
    optimizer, other = Mixed(list(model.parameters())), Mixed(list(twin.parameters()))
    train(model, optimizer, 2)
    optimizers.load_state(other, expand(saved(optimizer)))
    assert len({id(entry["count"]) for entry in other.state.values()}) == 1
    apart = copy.deepcopy(optimizer.state_dict())
    for place, entry in apart["state"].items():
        entry["count"] = torch.tensor(float(place))
    optimizers.load_state(optimizer, expand(capture(0, apart)))
    assert [float(entry["count"]) for entry in optimizer.state.values()] == [0, 1, 2, 3, 4]


def test_the_hooks_of_loading_are_called() -> None:
    model = net()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 1)
    calls: list[str] = []
    optimizer.register_load_state_dict_pre_hook(lambda optimizer, state: calls.append("before"))
    optimizer.register_load_state_dict_post_hook(lambda optimizer: calls.append("after"))
    optimizers.load_state(optimizer, expand(saved(optimizer)))
    assert calls == ["before", "after"]


def test_half_precision_parameters_keep_the_dtype_of_their_state() -> None:
    model, twin = net().bfloat16(), net().bfloat16()
    optimizer, other = Mixed(list(model.parameters())), Mixed(list(twin.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizers.load_state(other, expand(saved(optimizer)))
    assert fingerprint(saved(other)) == fingerprint(saved(optimizer))
    assert {entry["mean"].dtype for entry in other.state.values()} == {torch.float64}
