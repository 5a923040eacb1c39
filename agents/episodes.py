"""The plain Gymnasium loop: an agent in an environment, to the end of an episode."""

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
    """What came of playing.

    Attributes:
        rewards: of each decision.
        actions: of each decision, as whole numbers.
        terminated: the run diverged.
        truncated: its budget was spent.
        info: after the last decision.
    """

    rewards: tuple[float, ...]
    actions: tuple[tuple[int, ...], ...] = field(repr=False)
    terminated: bool
    truncated: bool
    info: Mapping[str, Any] = field(repr=False)

    @property
    def reward(self) -> float:
        """Of the whole episode."""
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
        env: `trainenv/GPT2-Tiny-v0`, `trainenv/Synthetic-v0`, or any with the same spaces; wrapped
            or not.
        agent: what acts. It gets `info["action_masks"]` too, where the environment can tell them.
        seed: of the reset.
        options: of the reset, for example `{"snapshot": s}`.
        decisions: stop after so many; None for the whole episode.

    Raises:
        UserError: what was given as an agent has no method `act`.
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
    """Wrappers hand on no attributes, so they are asked for one after the other."""
    return (
        {"action_masks": env.get_wrapper_attr("action_masks")()}
        if env.has_wrapper_attr("action_masks")
        else {}
    )
