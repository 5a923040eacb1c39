"""Parts of a run in place: packed state, data by position, rates of any scheduler."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader

from tests.integrations.trainings import Sequences, all_equal
from trainenv.integrations.attach.data import Data, LoaderSource
from trainenv.integrations.attach.rates import RatesInForce, scheduled_rates, warmup_of
from trainenv.tools.packing import pack, unpack
from trainenv.training import snapshots
from trainenv.types import UserError

CPU = torch.device("cpu")


def test_python_values_survive_a_snapshot() -> None:
    value = {
        "tuple": (1, 2.5, None),
        "counter": Counter({3: 2}),
        "ordered": OrderedDict(b=1, a=2),
        "lists": defaultdict(list, {"a/b": [math.inf]}),
        "set": {1, 2},
        "array": np.arange(3),
        "bytes": b"ab",
        "nested": [{"x": torch.arange(3)}],
    }
    snapshot = snapshots.capture(0, {"value": pack(value)})
    found = unpack(snapshots.expand(snapshot)["value"])
    assert {name: type(part) for name, part in found.items()} == {
        name: type(part) for name, part in value.items()
    }
    found_array, array = found.pop("array"), value.pop("array")
    assert np.array_equal(found_array, array)
    assert all_equal(found, value)
    found["lists"]["new"].append(1)


def test_unpacked_tensors_are_written_into_the_live_ones() -> None:
    saved = {"a": torch.ones(3)}
    live = {"a": torch.zeros(3)}
    found = unpack(pack(saved), live)
    assert found["a"] is live["a"]
    assert live["a"].tolist() == [1, 1, 1]


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(UserError, match="the state of it must be made of tensors"):
        pack({"x": object()}, "the state of it")


def drawing(examples: list[Any]) -> torch.Tensor:
    """Collate with noise, from the global generator."""
    return torch.stack(examples).float() + torch.rand(())


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_batches_come_again_bit_by_bit(own_generator: bool, ahead: bool) -> None:
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(5) if own_generator else None
    loader = DataLoader(
        Sequences(22), batch_size=4, shuffle=True, generator=generator, collate_fn=drawing
    )
    data = Data(LoaderSource(loader), accumulation=2, ahead=ahead, device=CPU)

    def steps(indices: range) -> list[Any]:
        return [data(index) for index in indices]

    steps(range(2))
    state = snapshots.expand(snapshots.capture(0, data.state()))
    random_state = torch.get_rng_state()
    first = steps(range(2, 8))  # over the ends of two epochs
    data.load(state)
    torch.set_rng_state(random_state)
    assert all_equal(first, steps(range(2, 8)))
    # and in another process
    other = Data(LoaderSource(loader), accumulation=2, ahead=ahead, device=CPU)
    other.load(state)
    torch.set_rng_state(random_state)
    assert all_equal(first, [other(index) for index in range(2, 8)])


@pytest.mark.parametrize(
    "make",
    [
        lambda one: lr_scheduler.LambdaLR(one, lambda step: min(1.0, (step + 1) / 5)),
        lambda one: lr_scheduler.CosineAnnealingLR(one, 20),
        lambda one: lr_scheduler.MultiStepLR(one, [4, 8]),
        lambda one: lr_scheduler.ExponentialLR(one, 0.9),
        lambda one: lr_scheduler.OneCycleLR(one, 0.5, total_steps=20, cycle_momentum=False),
        lambda one: lr_scheduler.SequentialLR(
            one,
            [
                lr_scheduler.LinearLR(one, 0.1, total_iters=5),
                lr_scheduler.CosineAnnealingLR(one, 9),
            ],
            [5],
        ),
    ],
)
def test_the_factor_never_reaches_the_scheduler(make: Any) -> None:
    def rates(factor: float) -> tuple[list[float], list[float], list[float]]:
        optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler = make(optimizer)
        ahead = scheduled_rates([scheduler], optimizer, 14)
        in_force = RatesInForce([optimizer])
        own, used = [], []
        for _ in range(14):
            own.append(in_force.scheduled)
            in_force.put(lr=factor, weight_decay=1.0)
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            in_force.give_back()
            scheduler.step()
        return own, used, ahead

    own, used, ahead = rates(0.3)
    plain, plain_used, _ = rates(1.0)
    assert own == plain == plain_used == ahead
    assert used == [rate * 0.3 for rate in own]


def test_the_warm_up_of_a_schedule_is_found() -> None:
    assert warmup_of([0.1, 0.2, 0.3, 0.3, 0.2, 0.1, 0.0]) == 2
    assert warmup_of([0.3, 0.2, 0.1]) == 0
    assert warmup_of([0.3, 0.3, 0.3]) == 0
