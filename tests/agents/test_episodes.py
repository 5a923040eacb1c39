"""The plain loop over environments, and the agents that act by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from trainenv import UserError, agents
from trainenv.agents import Agent, ClipOnly, DoNothing, play
from trainenv.agents.contract import Action, Observation
from trainenv.config.schema import InterventionConfig
from trainenv.envs.observation import FEATURES
from trainenv.interventions import ActionCodec

CLIPS = ("none", "zclip", "arc", "spam")


@dataclass
class Noting:
    """Draws any action and notes what it was given."""

    seed: int
    shown: list[Mapping[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = np.random.default_rng(self.seed)

    def act(self, observation: Observation, info: Mapping[str, Any], /) -> Action:
        assert observation.shape == (len(FEATURES),)
        self.shown.append(info)
        return self._draw.integers(0, [4, 3, 5, 2, 2, 2])


def made(**more: Any) -> gym.Env[Any, Any]:
    return gym.make("trainenv/Synthetic-v0", **more)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_plays_what_a_plain_loop_plays(seed: int) -> None:
    episode = play(made(), Noting(5), seed=seed)
    env, draw = made(), np.random.default_rng(5)
    env.reset(seed=seed)
    rewards, over = [], False
    while not over:
        _, reward, terminated, truncated, info = env.step(draw.integers(0, [4, 3, 5, 2, 2, 2]))
        rewards.append(reward)
        over = terminated or truncated
    assert episode.rewards == tuple(rewards)
    assert episode.reward == pytest.approx(sum(rewards))
    assert (episode.terminated, episode.truncated) == (terminated, truncated)
    assert episode.info["step"] == info["step"]
    assert len(episode.actions) == len(rewards)
    draw = np.random.default_rng(5)
    assert episode.actions == tuple(
        tuple(draw.integers(0, [4, 3, 5, 2, 2, 2]).tolist()) for _ in rewards
    )


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_agent_is_told_what_is_legal(wrapped: bool) -> None:
    agent, env = Noting(0), made()
    play(gym.wrappers.RecordEpisodeStatistics(env) if wrapped else env, agent, seed=0, decisions=8)
    assert len(agent.shown) == 8
    for info in agent.shown:
        assert {"step", "validation_loss", "fired", "action_masks"} <= info.keys()
        assert info["action_masks"].shape == (18,)
    assert len({info["action_masks"].tobytes() for info in agent.shown}) > 1  # those of the moment


def test_it_stops_after_so_many_decisions() -> None:
    episode = play(made(), DoNothing(), seed=0, decisions=3)
    assert len(episode.rewards) == 3
    assert (episode.terminated, episode.truncated) == (False, False)


def test_environments_without_masks_do_too() -> None:
    class Bare(gym.Env[Any, Any]):
        observation_space = gym.spaces.Box(-10, 10, (len(FEATURES),), np.float32)
        action_space = gym.spaces.MultiDiscrete([4, 3, 5, 2, 2, 2])

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            return np.zeros(len(FEATURES), dtype=np.float32), {"step": 0}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return (
                np.zeros(len(FEATURES), dtype=np.float32),
                float(action[2]),
                True,
                False,
                {"step": 1},
            )

    agent = Noting(0)
    assert play(Bare(), agent).terminated
    assert "action_masks" not in agent.shown[0]
    assert play(Bare(), ClipOnly("arc")).rewards == (3.0,)


def test_no_agent() -> None:
    with pytest.raises(UserError, match="act"):
        play(made(), object())  # type: ignore[arg-type]


def test_doing_nothing() -> None:
    action = DoNothing().act(np.zeros(32, dtype=np.float32), {})
    assert action.tolist() == [0] * 6
    assert action.dtype == np.int64


@pytest.mark.parametrize("clip", CLIPS)
def test_clip_only_sets_its_policy_where_that_is_legal(clip: Any) -> None:
    codec = ActionCodec(InterventionConfig(lr_scales=(1.0, 0.5), allow_spam=True))

    @dataclass
    class Run:
        lr_scale = weight_decay_scale = 1.0
        clip: str = "none"
        flagged_ahead: tuple[int, ...] = ()

    for in_force in CLIPS:
        masks = np.concatenate(codec.masks(Run(clip=in_force)))
        action = ClipOnly(clip, codec).act(np.zeros(32, dtype=np.float32), {"action_masks": masks})
        assert codec.decode(action).clip == (None if clip == in_force else clip)
        assert not action[[0, 1, 3, 4, 5]].any()


def test_spam_only_where_it_is_allowed() -> None:
    @dataclass
    class Run:
        lr_scale = weight_decay_scale = 1.0
        clip: str = "none"
        flagged_ahead: tuple[int, ...] = ()

    masks = np.concatenate(ActionCodec().masks(Run()))
    assert not ClipOnly("spam").act(np.zeros(32, dtype=np.float32), {"action_masks": masks}).any()


def test_public_names() -> None:
    for name in agents.__all__:
        assert getattr(agents, name) is not None
    assert isinstance(DoNothing(), Agent)
    assert isinstance(ClipOnly("arc"), Agent)
    with pytest.raises(AttributeError, match="Nobody"):
        agents.Nobody  # noqa: B018
