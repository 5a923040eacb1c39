"""A state that fits the schema and no run: refused before a kernel reads past what is there, the run as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from trainenv.run import TrainingRun
from trainenv.types import TENSOR, Snapshot, UserError

SMALL = {
    "steps": 20,
    "model": {"width": 16, "layers": 1, "heads": 2, "context": 16},
    "validation": {"every": 0, "sequences": 2},
}
Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def moment_of_another_shape(state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    state["optimizer"]["state"]["0"]["exp_avg"] = {TENSOR: "rng/torch"}


def moment_that_is_a_number(state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    state["optimizer"]["state"]["0"]["exp_avg_sq"] = 1.0


def step_count_without_an_element(state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["optimizer/state/0/step"] = torch.zeros(0)


def weight_that_is_a_number(state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    state["model"][next(iter(state["model"]))] = 1.0


def words_of_another_generator(state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["rng/python"] = torch.zeros(3)


def state_of_another_generator(state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["rng/torch"] = torch.zeros(8, dtype=torch.uint8)


def numpy_of_another_kind(state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    state["rng"]["numpy_rest"] = ["PCG64", 0, 0, 0.0]


def forecasters_of_another_shape(state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    state["monitor"]["forecasters"]["weights"] = [[0.0]]


@pytest.mark.parametrize(
    "change",
    [
        moment_of_another_shape,
        moment_that_is_a_number,
        step_count_without_an_element,
        weight_that_is_a_number,
        words_of_another_generator,
        state_of_another_generator,
        numpy_of_another_kind,
        forecasters_of_another_shape,
    ],
)
@pytest.mark.parametrize("fresh", [True, False])
def test_foreign_state_is_refused_and_the_run_as_it_was(change: Change, fresh: bool) -> None:
    run = TrainingRun.from_config("tiny", SMALL)
    run.advance(3)
    snapshot = run.snapshot()
    state, tensors = copy.deepcopy(dict(snapshot.state)), dict(snapshot.tensors)
    change(state, tensors)
    other = TrainingRun.from_config("tiny", SMALL) if fresh else run
    before = other.fingerprint()
    with pytest.raises(UserError, match="snapshot"):
        other.restore(replace(snapshot, state=state, tensors=tensors))
    assert other.fingerprint() == before
    other.restore(snapshot)
    other.advance(1)
    assert isinstance(other.snapshot(), Snapshot)
