"""A run's randomness is its own: it goes on bit for bit, and its surroundings never notice."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch

from trainenv.tools.rng import RandomState
from trainenv.training.snapshots import capture, expand

CPU = torch.device("cpu")
SEEDS = [0, 1, 2**32, 2**63 - 1]


def draw() -> list[Any]:
    """Some of everything, including the generators' half-used normal pairs."""
    return [
        *torch.rand(3).tolist(),
        *torch.randn(5).tolist(),
        random.random(),
        random.gauss(0, 1),
        random.getrandbits(70),
        float(np.random.rand()),  # noqa: NPY002
        float(np.random.randn()),  # noqa: NPY002
        int(np.random.randint(2**31)),  # noqa: NPY002
    ]


def seed_surroundings(seed: int = 123) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


@pytest.fixture(autouse=True)
def surroundings() -> list[Any]:
    """What the surroundings would draw next, if nobody disturbed them; they stand mid-way in a normal pair."""
    seed_surroundings()
    draw()
    expected = draw()
    seed_surroundings()
    draw()
    return expected


@pytest.mark.parametrize("seed", SEEDS)
def test_making_one_disturbs_nothing(seed: int, surroundings: list[Any]) -> None:
    RandomState(seed, CPU)
    assert draw() == surroundings


def test_drawing_inside_disturbs_nothing(surroundings: list[Any]) -> None:
    rng = RandomState(0, CPU)
    with rng.active():
        draw()
    assert draw() == surroundings


def test_an_exception_inside_disturbs_nothing(surroundings: list[Any]) -> None:
    rng = RandomState(0, CPU)

    def fail() -> None:
        with rng.active():
            draw()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert draw() == surroundings


def test_two_runs_in_turn_are_each_alone() -> None:
    alone = []
    one = RandomState(1, CPU)
    for _ in range(3):
        with one.active():
            alone.append(draw())
    one, two, together = RandomState(1, CPU), RandomState(2, CPU), []
    for _ in range(3):
        with one.active():
            together.append(draw())
        draw()
        with two.active():
            draw()
    assert together == alone


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pure_function_of_the_seed(seed: int) -> None:
    drawn = []
    for noise in (1, 2):
        seed_surroundings(noise)
        with RandomState(seed, CPU).active():
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    with RandomState(seed ^ 1, CPU).active():
        other = draw()
    assert all(a != b for a, b in zip(other, drawn[0]))


def test_seeds_the_global_generators_as_a_user_would() -> None:
    with RandomState(7, CPU).active():
        ours = draw()
    seed_surroundings(7)
    assert draw() == ours


def test_it_goes_on_unless_told_not_to() -> None:
    rng = RandomState(0, CPU)
    with rng.active(keep=False):
        first = draw()
    with rng.active():
        again = draw()
    with rng.active():
        next_ones = draw()
    assert first == again != next_ones
    with RandomState(0, CPU).active():
        assert [draw(), draw()] == [first, next_ones]


def test_not_kept_after_an_exception_either() -> None:
    rng = RandomState(0, CPU)
    before = rng.state_dict()

    def fail() -> None:
        with rng.active(keep=False):
            draw()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(before.values(), rng.state_dict().values())
    )


@pytest.mark.parametrize("through_snapshot", [False, True])
def test_state_goes_on_bit_for_bit(through_snapshot: bool) -> None:
    rng = RandomState(5, CPU)
    with rng.active():
        draw()
    state = rng.state_dict()
    if through_snapshot:
        snapshot = capture(0, {"rng": state})
        json.dumps(snapshot.state)
        state = expand(snapshot)["rng"]
    with rng.active():
        expected = [draw(), draw()]
    other = RandomState(99, CPU)
    other.load_state_dict(state)
    with other.active():
        assert [draw(), draw()] == expected


def test_state_is_shared_with_nobody() -> None:
    rng = RandomState(5, CPU)
    given = rng.state_dict()
    twin = RandomState(0, CPU)
    twin.load_state_dict(given)
    for value in given.values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    for state in (rng, twin):
        with state.active():
            drawn = draw()
        with RandomState(5, CPU).active():
            assert draw() == drawn
