"""PPO over thresholds: advantages, ratios, replay, the rate on a plateau, and what is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from trainenv.agents.rl.contained import contained
from trainenv.agents.thresholds import PPO, Axis, ThresholdSpace, TuningProblem, train_policy, tune
from trainenv.agents.thresholds.ppo_learner import GuardedRollout, Replay, truncated_weights
from trainenv.agents.thresholds.walk import ThresholdWalk
from trainenv.envs.decoding import DecodingEnv

SPACE = ThresholdSpace(axes=(Axis(name="a", low=0.0, high=1.0), Axis(name="b", low=0.0, high=1.0)))


def hill(values: Mapping[str, float]) -> dict[str, float]:
    return {"score": 1.0 - (values["a"] - 0.7) ** 2 - (values["b"] - 0.3) ** 2}


def walk(measure: Any = hill, budget: int = 10_000, **options: Any) -> ThresholdWalk:
    problem = TuningProblem(measure, SPACE, budget=budget)
    return ThresholdWalk([problem], np.zeros((1, 0)), steps=(0.3, 0.15), length=8, **options)


def trained(learner: PPO, moves: int, measure: Any = hill) -> Any:
    with contained():
        made = learner.learner(walk(measure))
        made.learn(moves)
    return made


def test_the_walk_is_an_environment() -> None:
    check_env(walk(), skip_render_check=True)


def test_advantages_are_the_sum_over_all_later_errors() -> None:
    """GAE is Σ_l (γλ)^l δ_{t+l} up to the end of the episode; the recursion must agree."""
    rng = np.random.default_rng(0)
    steps = 40
    discount = 0.9
    trace = 0.8
    env = walk()
    buffer = GuardedRollout(
        steps, env.observation_space, env.action_space, gae_lambda=trace, gamma=discount
    )
    rewards = rng.normal(size=steps)
    values = rng.normal(size=steps + 1)
    starts = rng.random(steps + 1) < 0.2
    for step in range(steps):
        buffer.add(
            np.zeros(2),
            np.zeros(2),
            rewards[step : step + 1],
            starts[step : step + 1],
            torch.tensor(values[step : step + 1]),
            torch.zeros(1),
        )
    buffer.compute_returns_and_advantage(torch.tensor(values[-1:]), starts[-1:])
    continues = 1.0 - starts[1:]
    errors = rewards + discount * values[1:] * continues - values[:-1]
    for step in range(steps):
        total = 0.0
        for later in range(step, steps):
            alive = float(np.prod(continues[step:later]))
            total += alive * (discount * trace) ** (later - step) * errors[later]
        assert buffer.advantages[step, 0] == pytest.approx(total, abs=1e-5)
    np.testing.assert_allclose(buffer.returns[:, 0], buffer.advantages[:, 0] + values[:-1], 1e-5)


def test_before_the_first_update_all_ratios_are_one() -> None:
    made = trained(PPO(rollout=32, batch=32, epochs=3), 96)
    assert len(made.first_ratios) == 32
    torch.testing.assert_close(made.first_ratios, torch.ones(32), rtol=0, atol=2e-5)


def test_the_policy_gives_a_deviation_for_each_state() -> None:
    made = trained(PPO(rollout=64, batch=32, lr=1e-2), 640)
    observations = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    found = made.policy.get_distribution(observations).distribution.stddev
    assert found.shape == (2, 2)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("limit", [math.inf, 0.5])
def test_replay_is_unbiased_without_a_limit_and_biased_with_one(limit: float) -> None:
    """Samples of N(0, 1) estimate the mean of f(x) = x under N(0.5, 0.8²)."""
    behaviour = torch.distributions.Normal(0.0, 1.0)
    policy = torch.distributions.Normal(0.5, 0.8)
    with contained():
        torch.manual_seed(0)
        sample = behaviour.sample((400_000,))
    weights = truncated_weights(policy.log_prob(sample), behaviour.log_prob(sample), limit)
    estimate = float((weights * sample).mean())
    error = float((weights * sample).std()) / len(sample) ** 0.5
    if math.isinf(limit):
        assert abs(estimate - 0.5) < 4 * error
        assert float(weights.mean()) == pytest.approx(1.0, abs=0.01)
    else:
        assert estimate < 0.5 - 20 * error
        assert float(weights.max()) == limit


def test_the_gradient_of_replay_is_that_of_the_policy() -> None:
    """The gradient of E_π[f] from the samples of another policy equals the exact one, 2·mean."""
    mean = torch.tensor(0.4, requires_grad=True)
    policy = torch.distributions.Normal(mean, 1.0)
    behaviour = torch.distributions.Normal(0.0, 1.0)
    with contained():
        torch.manual_seed(1)
        sample = behaviour.sample((400_000,))
    new = policy.log_prob(sample)
    weights = truncated_weights(new, behaviour.log_prob(sample), math.inf).detach()
    (weights * sample**2 * new).mean().backward()
    assert mean.grad is not None
    assert float(mean.grad) == pytest.approx(0.8, abs=0.02)


def test_replay_keeps_the_newest_samples_with_their_log_probabilities() -> None:
    replay = Replay(6, np.random.default_rng(0))
    for first in (0, 4):
        numbers = np.arange(first, first + 4, dtype=np.float32)
        replay.add(numbers[:, None], -numbers)
    observations, log_probabilities = replay.draw(200)
    assert len(replay) == 6
    assert set(observations.flatten().tolist()) == {2, 3, 4, 5, 6, 7}
    assert torch.equal(observations.flatten(), -log_probabilities)


def test_the_rate_falls_on_a_plateau_only() -> None:
    flat = trained(PPO(patience=1, lr=1e-3), 160, lambda _: {"score": 1.0})
    assert flat.rate < 1e-3
    rising = iter(range(10_000))
    risen = trained(PPO(patience=1, lr=1e-3), 160, lambda _: {"score": float(next(rising))})
    assert risen.rate == 1e-3


def test_rewards_that_are_not_finite_leave_all_weights_finite() -> None:
    answers = iter([math.nan, 1.0, math.inf, -math.inf, 0.5] * 100)
    made = trained(PPO(), 160, lambda _: {"score": next(answers)})
    assert made.rollout_buffer.replaced == 96
    assert all(torch.isfinite(weights).all() for weights in made.policy.parameters())
    assert np.isfinite(made.rollout_buffer.rewards).all()


def test_an_update_that_is_not_finite_is_skipped() -> None:
    with contained():
        made = PPO(replay=0).learner(walk())
        made.learn(16)
        before = [weights.clone() for weights in made.policy.parameters()]
        made.rollout_buffer.advantages[:] = math.nan
        made.train()
    assert made.skipped == 6
    for weights, old in zip(made.policy.parameters(), before, strict=True):
        assert torch.equal(weights, old)


def test_a_policy_over_tasks_follows_the_context() -> None:
    """Two tasks with opposite optima; only the context tells them apart."""

    def task(place: float) -> TuningProblem:
        return TuningProblem(
            lambda values: {"score": 1 - 4 * (values["a"] - place) ** 2}, SPACE, budget=10**6
        )

    contexts = np.array([[-1.0], [1.0]])
    learner = PPO(rollout=16, batch=64, lr=3e-3, seed=1)
    policy = train_policy(learner, [task(0.2), task(0.8)], contexts, moves=6000)
    low = policy.settle(contexts[0])[0]
    high = policy.settle(contexts[1])[0]
    assert low == pytest.approx(0.2, abs=0.1)
    assert high == pytest.approx(0.8, abs=0.1)


def test_training_leaves_the_generators_as_they_were() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    tune(PPO(), TuningProblem(hill, SPACE, budget=32))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]  # noqa: NPY002


def test_the_learner_takes_the_environment_of_decoding() -> None:
    env = DecodingEnv(config={"context": True, "k": 4, "decisions": 4})
    with contained():
        made = PPO(rollout=8, batch=8, epochs=2).learner(env)
        made.learn(16)
    assert made.num_timesteps == 16
    assert made.skipped == 0
    assert made.policy.observation_space.shape == (8,)
