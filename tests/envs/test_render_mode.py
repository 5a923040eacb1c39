"""Environments render the validation loss as text and as a picture; other modes are refused in a sentence."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import pytest

import trainenv
from trainenv.envs.observation import FEATURES
from trainenv.envs.spaces import NoSuchRenderMode
from trainenv.types import UserError

IDS = ("trainenv/Synthetic-v0", "trainenv/GPT2-Tiny-v0")


@pytest.mark.parametrize("name", IDS)
def test_another_render_mode_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match="must be ansi, rgb_array or None, found 'human'"):
        gym.make(name, render_mode="human")


def test_the_loss_is_rendered_as_text_and_as_a_picture() -> None:
    text = gym.make(IDS[0], render_mode="ansi")
    picture = gym.make(IDS[0], render_mode="rgb_array")
    for env in (text, picture):
        env.reset(seed=0)
        for _ in range(3):
            env.step(np.zeros(6, dtype=np.int64))
    words, bars, end = str(text.render()).split("\n")
    assert words.startswith("decision 3, validation loss ")
    assert words.endswith("LR × 1, zclip")
    assert (len(bars), end) == (4, "")
    assert bars[0] == "█"
    drawn = np.asarray(picture.render())
    assert (drawn.shape, drawn.dtype) == ((240, 360, 3), np.uint8)
    blue = (drawn == (31, 119, 180)).all(axis=-1)
    first = blue[:, 20].nonzero()[0].mean()
    last = blue[:, 340].nonzero()[0].mean()
    assert first < last  # the loss falls


def test_an_observation_is_explained() -> None:
    env = gym.make(IDS[0])
    observation, _ = env.reset(seed=0)
    table = env.unwrapped.explain(observation)  # type: ignore[attr-defined]
    assert list(table.index) == list(FEATURES)
    assert table["meaning"].str.len().min() > 10
    assert table.loc["clip_arc", "meaning"].startswith("One-hot code")
    assert table.loc["validation", "value"] == pytest.approx(float(observation[2]), abs=1e-4)
    with pytest.raises(UserError, match=r"expected an observation of 32 numbers, found \[3\]"):
        env.unwrapped.explain(observation[:3])  # type: ignore[attr-defined]


def test_the_action_mask_is_in_the_info_and_samples_legal_actions() -> None:
    env = gym.make(IDS[0])
    _, info = env.reset(seed=0)
    flat = np.concatenate(info["action_mask"]).astype(bool)
    assert (flat == env.unwrapped.action_masks()).all()  # type: ignore[attr-defined]
    for _ in range(5):
        mask = tuple(np.array(part, dtype=np.int8) for part in info["action_mask"])
        action = env.action_space.sample(mask)
        _, _, terminated, truncated, info = env.step(action)
        assert info["masked"] == []
        if terminated or truncated:
            break


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
