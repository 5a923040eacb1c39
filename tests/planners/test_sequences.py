"""Which futures there are, and choosing some of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.config.schema import InterventionConfig
from trainenv.interventions import ActionCodec
from trainenv.planners.support.sequences import (
    NOTHING,
    Legality,
    count,
    even,
    exhaustive,
    factor,
    some,
    uniform,
    values,
)
from trainenv.planners.testing import ToyWorld

OPEN = InterventionConfig(allow_spam=True, allow_data_reorder=True, allow_skip_batch=True)
SIZES = ActionCodec().sizes


@st.composite
def masks_of(draw):  # type: ignore[no-untyped-def]
    return tuple(
        np.array([True, *(draw(st.booleans()) for _ in range(size - 1))]) for size in SIZES
    )


@settings(max_examples=25, deadline=None)
@given(
    masks=masks_of(), seed=st.integers(0, 99), decisions=st.integers(1, 3), rows=st.integers(1, 40)
)
def test_only_what_is_legal_is_drawn(masks, seed, decisions, rows) -> None:  # type: ignore[no-untyped-def]
    everything = {tuple(vector) for vector in exhaustive(masks).tolist()}
    assert everything == set(product(*(part.tolist() for part in values(masks))))
    assert len(everything) == count(masks) == round(count(masks, decisions) ** (1 / decisions))
    assert exhaustive(masks)[0].tolist() == [0] * 6
    for draw in (even, uniform):
        drawn = draw(masks, rows, decisions, np.random.default_rng(seed))
        assert drawn.shape == (rows, decisions, 6)
        assert {tuple(vector) for vector in drawn.reshape(-1, 6).tolist()} <= everything
    problem = ToyWorld().problem(seed, masks=masks, masks_after=None)
    found = list(some(problem, rows, decisions, even))
    assert len(set(found)) == len(found) == min(rows, len(found))
    assert NOTHING not in found
    assert not any(Legality(problem).objection(one) for one in found)
    if decisions == 1 and rows >= len(everything) - 1:
        assert len(found) == len(everything) - 1
    elif decisions == 1 and len(everything) > 4 * rows:
        assert len(found) == rows


def test_an_even_choice_is_more_even_than_a_random_one() -> None:
    masks = tuple(np.ones(size, dtype=np.bool_) for size in SIZES)

    def unevenness(draw) -> float:  # type: ignore[no-untyped-def]
        """Mean squared error of how often each value, and each pair of values of the first two parts, is drawn."""
        total = 0.0
        for seed in range(10):
            drawn = draw(masks, 60, 1, np.random.default_rng(seed))[:, 0]
            for part, size in enumerate(SIZES):
                total += float(
                    ((np.bincount(drawn[:, part], minlength=size) / 60 - 1 / size) ** 2).sum()
                )
            total += float(
                (
                    (np.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=12) / 60 - 1 / 12) ** 2
                ).sum()
            )
        return total

    assert unevenness(even) < 0.4 * unevenness(uniform)


def test_a_seed_shifts_an_even_choice() -> None:
    problems = [ToyWorld(codec=ActionCodec(OPEN)).problem(seed) for seed in (1, 1, 2)]
    first, same, other = (list(some(problem, 20, 1, even)) for problem in problems)
    assert first == same
    assert first != other


def test_factors_of_ordered_parts() -> None:
    assert [factor(ActionCodec(), 0, value) for value in range(4)] == [1.0, 0.8, 0.9, 1.1]
    assert [factor(ActionCodec(), 1, value) for value in range(3)] == [1.0, 0.5, 2.0]


@pytest.mark.parametrize("decisions", [1, 2])
def test_the_toy_world_is_what_it_says(decisions: int) -> None:
    """Its model, its search states and its executor agree with its law."""
    world = ToyWorld(seed=4, unsafe=None)
    problem = world.problem()
    model, executor = problem.model, problem.executor
    assert model is not None
    assert executor is not None
    legal = [world.codec.decode(vector) for vector in exhaustive(problem.masks)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        sequence = tuple(legal[k] for k in rng.integers(len(legal), size=decisions))
        delta = world.delta(sequence)
        assert model.forecast(problem.history, [sequence])[0].annealed.mean == delta
        state = model.initial_inference([problem.history])
        fall = 0.0
        for done in sequence:
            state = model.recurrent_inference(state.latent, world.codec.encode(done)[None])
            fall += float(state.reward[0])
        assert fall + float(state.value[0]) == pytest.approx(-delta, abs=1e-6)
        outcome, control = executor.run([sequence, NOTHING], 50 * decisions, measure="annealed")
        assert np.log(outcome.annealed / control.annealed) == pytest.approx(delta)
        assert decisions > 1 or world.best(problem) <= delta
