"""Gymnasium loop: an agent acts in an environment to the end of an episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from trainenv.agents.contract import Action, Agent, Observation
from trainenv.types import UserError


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Result of an episode.

    Attributes:
        rewards: Reward of each decision.
        actions: Action of each decision, as whole numbers.
        terminated: True if the run diverged.
        truncated: True if its budget was spent.
        info: Mapping that the environment returned with the last decision.
    """

    rewards: tuple[float, ...]
    actions: tuple[tuple[int, ...], ...] = field(repr=False)
    terminated: bool
    truncated: bool
    info: Mapping[str, Any] = field(repr=False)

    @property
    def reward(self) -> float:
        """Sum of the rewards."""
        return sum(self.rewards)


def play(
    env: gym.Env[Observation, Action],
    agent: Agent,
    *,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
    decisions: int | None = None,
) -> Episode:
    """Let an agent act from a reset to the end of the episode.

    Args:
        env: Environment, such as `trainenv/GPT2-Tiny-v0` or `trainenv/Synthetic-v0`, or any with
            the same spaces; wrapped or not.
        agent: Agent. Its `info` has `action_masks` as well if the environment has them.
        seed: Random seed of the reset.
        options: Options of the reset, for example `{"snapshot": s}`.
        decisions: Largest number of decisions; None for the whole episode.

    Raises:
        UserError: The agent has no method `act`.
    """
    if not isinstance(agent, Agent):
        raise UserError(f"an agent needs a method act(observation, info), found {agent!r:.200}")
    observation, info = env.reset(seed=seed, options=options)
    rewards = list[float]()
    actions = list[tuple[int, ...]]()
    terminated = truncated = False
    while not (terminated or truncated) and (decisions is None or len(rewards) < decisions):
        action = np.asarray(agent.act(observation, _masks(env) | info))
        observation, reward, terminated, truncated, info = env.step(action)
        rewards.append(float(reward))
        actions.append(tuple(int(part) for part in action))
    return Episode(
        rewards=tuple(rewards),
        actions=tuple(actions),
        terminated=terminated,
        truncated=truncated,
        info=info,
    )


def _masks(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Return the action masks, if there are any; wrappers do not forward attributes."""
    if not env.has_wrapper_attr("action_masks"):
        return {}
    return {"action_masks": env.get_wrapper_attr("action_masks")()}
