"""The rules of the search do what their papers say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.support.search_cases import searched
from tests.support.search_reference import World
from trainenv.planners.search import PUCT, Gumbel
from trainenv.planners.search.halving import considered_visits


def test_sequential_halving_by_hand() -> None:
    assert considered_visits(4, 16) == (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)
    assert considered_visits(3, 7) == (0, 0, 0, 1, 1, 2, 2)
    assert considered_visits(5, 3) == (0, 0, 0)
    assert considered_visits(1, 4) == (0, 1, 2, 3)


def test_the_visits_of_a_search_with_sixteen_actions_are_halved() -> None:
    world = World.random(np.random.default_rng(0), actions=16)
    found = searched(world, simulations=64)  # 4 rounds of 16 visits: 16 × 1, 8 × 2, 4 × 4, 2 × 8
    assert sorted(found.visits[0].tolist()) == [1] * 8 + [3] * 4 + [7] * 2 + [15] * 2


def test_without_differences_in_return_the_likeliest_action_is_taken_and_the_policy_stays() -> None:
    rng = np.random.default_rng(1)
    world = World.random(rng, actions=5)
    world.rewards[:], world.values[:] = 0.0, 0.7
    for count in (1, 4):
        found = searched(world, np.arange(count), rule=Gumbel(gumbel_scale=0.0), simulations=30)
        assert found.action.tolist() == world.logits[:count].argmax(axis=1).tolist()
        prior = np.exp(world.logits[:count])
        np.testing.assert_allclose(
            found.policy, prior / prior.sum(axis=1, keepdims=True), rtol=1e-9
        )
        np.testing.assert_allclose(found.value, 0.7)


def test_the_policy_target_improves_on_the_policy() -> None:
    # Danihelka et al., section 4: for exact q the target is at least as good as the prior; here one decision remains.
    for seed in range(30):
        world = World.random(np.random.default_rng(seed), actions=6)
        found = searched(world, simulations=24, depth=1, seed=seed)
        exact = world.rewards[0] + world.values[world.follow[0]]
        prior = np.exp(world.logits[0] - world.logits[0].max())
        assert found.policy[0] @ exact >= prior @ exact / prior.sum() - 1e-12


def test_gumbel_samples_the_first_action_from_the_policy() -> None:
    world = World.random(np.random.default_rng(2), actions=4)
    generator = np.random.default_rng(3)
    states = np.zeros(4000, dtype=int)
    taken = searched(
        world, states, rule=Gumbel(considered=1), simulations=1, generator=generator
    ).action
    prior = np.exp(world.logits[0]) / np.exp(world.logits[0]).sum()
    frequency = np.bincount(taken, minlength=4) / 4000
    assert np.abs(frequency - prior).max() < 4 * math.sqrt(0.25 / 4000)


def test_puct_mixes_dirichlet_noise_over_the_legal_actions_alone() -> None:
    world = World.random(np.random.default_rng(4), actions=6)
    mask = np.tile([True, True, False, True, False, True], (3000, 1))
    states = np.zeros(3000, dtype=int)
    rule = PUCT(noise=1.0)
    first = searched(
        world, states, rule=rule, simulations=1, legal=mask, generator=np.random.default_rng(5)
    ).action
    frequency = (
        np.bincount(first, minlength=6) / 3000
    )  # the first visit goes where the noise alone is highest: anywhere alike
    assert frequency[[2, 4]].tolist() == [0, 0]
    assert np.abs(frequency[[0, 1, 3, 5]] - 0.25).max() < 4 * math.sqrt(0.25 * 0.75 / 3000)


@pytest.mark.parametrize("roots", [1, 2])
def test_puct_draws_the_action_by_visits(roots: int) -> None:
    world = World.random(np.random.default_rng(6), actions=3, spread=0.3)
    world.logits[:] = 0.0
    generator, rule = np.random.default_rng(7), PUCT(noise=0.0, temperature=0.5)
    runs = [
        searched(world, [0] * roots, rule=rule, simulations=12, depth=1, generator=generator)
        for _ in range(300)
    ]
    weights = runs[0].visits[0].astype(float) ** 2
    assert np.count_nonzero(weights) > 1
    frequency = np.bincount([run.action[-1] for run in runs], minlength=3) / 300
    assert np.abs(frequency - weights / weights.sum()).max() < 4 * math.sqrt(0.25 / 300)


def two_steps() -> World:
    """Action 1 hurts and goes on hurting, as does 2; but 2 after 1 mends more than both cost. 0 does nothing.

    Values and policy say nothing of it. (pUCT stays with what looks best for some 200 simulations.)
    """
    follow = np.array([[0, 1, 2], [1, 1, 3], [2, 2, 2], [3, 3, 3]])
    rewards = np.array(
        [[0.0, -0.02, -0.02], [-0.02, -0.02, 0.10], [-0.02, -0.02, -0.02], [0.0, 0.0, 0.0]]
    )
    return World(follow=follow, rewards=rewards, values=np.zeros(4), logits=np.zeros((4, 3)))


@pytest.mark.parametrize(
    ("rule", "simulations"), [(Gumbel(gumbel_scale=0.0), 30), (PUCT(noise=0.0), 400)]
)
@pytest.mark.parametrize("roots", [1, 3])
def test_finds_two_interventions_that_help_only_together(
    rule: Any, simulations: int, roots: int
) -> None:
    world, states = two_steps(), [0] * roots
    for seed in range(3):
        found = searched(world, states, rule=rule, seed=seed, simulations=simulations, depth=2)
        assert found.action.tolist() == [1] * roots
        then = found.tree.children[np.arange(roots), 0, 1]
        assert found.tree.visits[np.arange(roots), then].argmax(axis=1).tolist() == [2] * roots
        one_step = searched(world, states, rule=rule, seed=seed, simulations=simulations, depth=1)
        assert one_step.action.tolist() == [0] * roots
