"""The environment of decoding thresholds: checkers, seeds, reward terms and options."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import trainenv  # noqa: F401  # registers the environments
from trainenv.decoding.clocks import CONTEXT, TracedTask
from trainenv.decoding.traces import CostModel, Settings, replay, synthetic_trace
from trainenv.envs import DecodingEnv
from trainenv.types import UserError


@pytest.fixture(scope="module")
def tasks() -> tuple[TracedTask, ...]:
    costs = CostModel.of_ratio(0.1)
    return tuple(
        TracedTask(name=f"task {seed}", trace=synthetic_trace(rows=2, seed=seed), costs=costs)
        for seed in range(2)
    )


def episode(env: gym.Env[Any, Any], seed: int) -> list[tuple[Any, ...]]:
    observation, info = env.reset(seed=seed)
    found: list[tuple[Any, ...]] = [(observation.tolist(), info)]
    actions = np.random.default_rng(seed)
    over = False
    while not over:
        action = actions.uniform(-1, 1, 2).astype(np.float32)
        observation, reward, ended, over, info = env.step(action)
        assert not ended
        found.append((observation.tolist(), reward, info))
    return found


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("rule", ["exact", "lossy", "pipelined"])
def test_both_checkers_pass(context: bool, rule: str) -> None:
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    env = gym.make("trainenv/Decoding-v0", config={"rule": rule, "context": context}).unwrapped
    check_env(env)
    check_env_sb3(env)


def test_an_episode_repeats_bit_for_bit(tasks: tuple[TracedTask, ...]) -> None:
    env = DecodingEnv(tasks, {"decisions": 6, "context": True})
    first = episode(env, 3)
    assert len(first) == 7
    assert episode(env, 3) == first
    assert episode(DecodingEnv(tasks, {"decisions": 6, "context": True}), 3) == first
    assert episode(env, 4) != first
    with pytest.raises(UserError, match="call reset"):
        env.step(np.zeros(2, np.float32))


def test_reward_is_the_sum_of_weighted_terms_of_the_replay(tasks: tuple[TracedTask, ...]) -> None:
    weights = {"speed": 2.0, "acceptance": 3.0, "shaping": 0.5, "distance": 7.0}
    env = DecodingEnv(tasks, {"reward": weights, "k": 10})
    env.reset(seed=0, options={"task": 1, "fallback_threshold": 0.5, "rollback_threshold": 5.0})
    _, reward, _, _, info = env.step(np.zeros(2, np.float32))
    settings = Settings(fallback_threshold=0.5, rollback_threshold=5.0, k=10)
    score = replay(tasks[1].trace, settings, tasks[1].costs, "lossy")
    assert info["terms"] == pytest.approx(
        {
            "speed": 2 * score.speedup,
            "acceptance": 3 * score.acceptance,
            "shaping": 0.5,
            "distance": -7 * score.distance,
        }
    )
    assert reward == pytest.approx(sum(info["terms"].values()))
    assert info["task"] == "task 1"


def test_shaping_falls_outside_the_intervals(tasks: tuple[TracedTask, ...]) -> None:
    env = DecodingEnv(tasks, {"reward": {"shaping": 1.0}, "k": 10})

    def shaping(fallback: float, rollback: float) -> float:
        options = {"fallback_threshold": fallback, "rollback_threshold": rollback}
        env.reset(seed=0, options=options)
        return float(env.step(np.zeros(2, np.float32))[4]["terms"]["shaping"])

    assert shaping(0.4, 3.0) == shaping(0.7, 7.0) == pytest.approx(1)
    assert shaping(0.4, 7.8) == pytest.approx(0.9)  # 0.08 outside an interval of 0.4, half weight
    assert shaping(0.1, 5.0) == pytest.approx(0.5)


def test_actions_move_the_thresholds_with_different_scales(tasks: tuple[TracedTask, ...]) -> None:
    env = DecodingEnv(tasks, {"fallback_step": 0.2, "rollback_step": 0.1, "k": 11})
    env.reset(seed=0, options={"fallback_threshold": 0.5, "rollback_threshold": 6.0})
    observation = env.step(np.array([1, -1], np.float32))[0]
    assert observation == pytest.approx([0.7, 0.4])
    assert env.settings.fallback_threshold == pytest.approx(0.05 + 0.7 * 0.9)
    assert env.settings.rollback_threshold == pytest.approx(5.0)
    for _ in range(10):
        env.step(np.array([1, np.nan], np.float32))
    assert env.settings.fallback_threshold == pytest.approx(0.95)
    assert env.settings.rollback_threshold == pytest.approx(5.0)


def test_context_tells_tasks_apart(tasks: tuple[TracedTask, ...]) -> None:
    env = DecodingEnv(tasks, {"context": True})
    first = env.reset(seed=0, options={"task": 0})[0]
    second = env.reset(seed=0, options={"task": 1})[0]
    assert first.shape == (2 + len(CONTEXT),)
    assert first[2] == pytest.approx(tasks[0].trace.acceptance)
    assert first[:2].tolist() == second[:2].tolist()
    assert first[2:].tolist() != second[2:].tolist()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"config": {"rul": "exact"}}, "unknown key 'rul'"),
        ({"config": {"k": 17}}, "less than or equal to 16"),
        ({"config": {"reward": {"fallback": (0.7, 0.4)}}}, "fallback must rise"),
        ({"tasks": ()}, "at least one task"),
        ({"render_mode": "human"}, "nothing to render"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DecodingEnv(**wrong)


def test_wrong_options_and_shallow_traces_are_refused(tasks: tuple[TracedTask, ...]) -> None:
    env = DecodingEnv(tasks)
    with pytest.raises(UserError, match="reset knows the options"):
        env.reset(options={"tsk": 1})
    with pytest.raises(UserError, match="below the number of tasks, 2"):
        env.reset(options={"task": 2})
    with pytest.raises(UserError, match="fallback_threshold must be"):
        env.reset(options={"fallback_threshold": 0.99})
    shallow = TracedTask(
        name="shallow", trace=synthetic_trace(rows=1, depth=4), costs=CostModel.of_ratio(0.1)
    )
    with pytest.raises(UserError, match="depth of 4 in shallow"):
        DecodingEnv([shallow])
