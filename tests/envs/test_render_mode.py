"""Nothing is rendered: who asks for it anyway is told so, and Stable-Baselines3, which always asks, goes on without."""

from __future__ import annotations

import pickle

import gymnasium as gym
import pytest

import trainenv
from trainenv.envs.spaces import NoSuchRenderMode
from trainenv.types import UserError

IDS = ("trainenv/Synthetic-v0", "trainenv/GPT2-Tiny-v0")


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("mode", ["human", "rgb_array"])
def test_a_render_mode_is_refused_in_a_sentence(name: str, mode: str) -> None:
    with pytest.raises(UserError, match=f"must be None, found '{mode}'; leave it out"):
        gym.make(name, render_mode=mode)


@pytest.mark.parametrize("name", IDS)
def test_no_render_mode_may_be_spelled_out(name: str) -> None:
    assert gym.make(name, render_mode=None).render_mode is None


def test_the_refusal_reaches_other_processes() -> None:
    error = pickle.loads(pickle.dumps(NoSuchRenderMode("none")))
    assert isinstance(error, trainenv.UserError)
    assert isinstance(error, TypeError)


@pytest.mark.parametrize("name", IDS)
def test_stable_baselines_makes_environments_by_their_ids(name: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_util import make_vec_env

    assert sb3.PPO("MlpPolicy", name, device="cpu").get_env().num_envs == 1
    environments = make_vec_env(name, n_envs=2)
    assert environments.num_envs == 2
    environments.close()


def test_an_agent_of_stable_baselines_learns_on_an_id() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    agent = sb3.PPO("MlpPolicy", IDS[0], device="cpu", n_steps=8, batch_size=8, n_epochs=1).learn(8)
    assert agent.num_timesteps == 8


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_gymnasium_makes_vectors_of_an_id(mode: str) -> None:
    environments = gym.make_vec(IDS[0], num_envs=2, vectorization_mode=mode)
    assert environments.reset(seed=0)[0].shape == (2, 32)
    environments.close()
