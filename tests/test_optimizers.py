"""The optimizer: what decays, what a reset means, and that loading shares nothing."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainenv import models, optimizers
from trainenv.config import OptimizerConfig, RunConfig
from trainenv.snapshots import capture, expand

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
    model = models.build(RunConfig.load("tiny"), 256, CPU)
    optimizer = optimizers.adamw(model, OptimizerConfig(lr=1e-3, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters())) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in model.named_parameters():
        kept = "wpe" in name or name.endswith("bias") or "ln_" in name
        assert decay[id(parameter)] == (0.0 if kept else 0.3), name
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (1e-3, (0.8, 0.9), 1e-6, True)


def test_frozen_parameters_are_left_out_and_empty_groups_too() -> None:
    model = net()
    model[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    assert sum(len(group["params"]) for group in optimizers.adamw(model, OptimizerConfig(lr=1e-3)).param_groups) == 4
    assert len(optimizers.adamw(nn.Linear(3, 3, bias=False), OptimizerConfig(lr=1e-3)).param_groups) == 1


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
