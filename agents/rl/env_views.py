"""Environments in the form that learners of Stable-Baselines3 expect.

The module imports that package, so import it late.

Differences from the environment, see `View`: hidden features are 0. Rewards are scaled up, because
nats are small numbers for a learner. DQN chooses from a short list instead of vectors. The end of
the budget ends the episode: there is no later value to bootstrap from.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from trainenv.envs.imagined_run import Imagined
from trainenv.envs.observation import FEATURES
from trainenv.envs.spaces import Observation
from trainenv.envs.training import TrainingEnv
from trainenv.envs.world_model import WorldModelEnv


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """View of a learner on an environment.

    Attributes:
        sees: Names of the features that are shown.
        actions: Action vectors to choose from by number, int64 [A, 6]; None to choose any vector.
        scale: Factor on rewards.
    """

    sees: tuple[str, ...]
    actions: NDArray[np.int64] | None = None
    scale: float = 1.0

    def shown(self, observations: Observation) -> Observation:
        """Return observations [..., 32] with hidden features set to 0."""
        return observations * np.isin(FEATURES, self.sees).astype(np.float32)

    def vector(self, choice: Any) -> NDArray[np.int64]:
        """Return the action vector [6] of a choice."""
        if self.actions is not None:
            choice = self.actions[int(choice)]
        return np.asarray(choice, dtype=np.int64)

    def choices(self, vectors: spaces.Space[Any]) -> spaces.Space[Any]:
        """Return the space of choices, for the space of action vectors."""
        if self.actions is None:
            return vectors
        return spaces.Discrete(len(self.actions))


class Viewed(gym.Wrapper[Observation, Any, Observation, NDArray[np.int64]]):
    """Training environment in a learner's view.

    Attributes:
        returns: Returns of the episodes that have ended, in nats.
    """

    env: TrainingEnv

    def __init__(self, env: TrainingEnv, view: View) -> None:
        super().__init__(env)
        self.view = view
        self.action_space = view.choices(env.action_space)
        self.returns = list[float]()
        self._earlier = Counter[str]()
        self._return = 0.0
        self._total = 0.0
        self._reset_cost = self._step_cost = 0.0

    @property
    def dearest(self) -> float:
        """Largest cost of a decision and the reset after it so far, in FLOPs."""
        return self._reset_cost + self._step_cost

    @property
    def flops(self) -> dict[str, float]:
        """FLOPs of all runs so far, by purpose."""
        now = self.env.run.ledger.as_dict()
        return {purpose: self._earlier[purpose] + flops for purpose, flops in now.items()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        if self._total:
            self._earlier.update(self.env.run.ledger.as_dict())
        observation, info = self.env.reset(seed=seed, options=options)
        self._return = 0.0
        self._total = self.env.run.ledger.total
        self._reset_cost = max(self._reset_cost, self._total)
        return self.view.shown(observation), info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(self.view.vector(action))
        before = self._total
        self._total = self.env.run.ledger.total
        self._step_cost = max(self._step_cost, self._total - before)
        self._return += reward
        if terminated or truncated:
            self.returns.append(self._return)
        return (
            self.view.shown(observation),
            reward * self.view.scale,
            terminated or truncated,
            False,
            info,
        )


class ImaginedEpisodes(VecEnv):
    """Episodes of a `WorldModelEnv` that advance together, with one call of the model for all.

    Where an episode ends, a new one starts.

    Attributes:
        returns: Returns of the episodes that have ended, in nats.
    """

    def __init__(self, env: WorldModelEnv, view: View, *, episodes: int, seed: int) -> None:
        self.env = env
        self.view = view
        super().__init__(episodes, env.observation_space, view.choices(env.action_space))
        self.returns = list[float]()
        self._generator = np.random.default_rng(seed)
        self._states: list[Imagined] = []
        self._latents = np.zeros((episodes, 0), dtype=np.float32)
        self._returned = np.zeros(episodes)
        self._chosen: list[NDArray[np.int64]] = []

    def reset(self) -> Observation:
        started = [self._started() for _ in range(self.num_envs)]
        self._states = [state for state, _ in started]
        self._latents = np.stack([latent for _, latent in started])
        self._returned[:] = 0
        return self._observations()

    def step_async(self, actions: NDArray[Any]) -> None:
        self._chosen = [self.view.vector(choice) for choice in actions]

    def step_wait(
        self,
    ) -> tuple[Observation, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        steps = self.env.imagine(self._states, self._latents, self._chosen, self._generator)
        infos: list[dict[str, Any]] = [{} for _ in steps]
        rewards = np.array([step.reward for step in steps])
        overs = np.array([step.after.over for step in steps])
        self._returned += rewards
        for place, step in enumerate(steps):
            self._states[place] = step.after
            self._latents[place] = step.latent
            if step.after.over:
                infos[place]["terminal_observation"] = self.view.shown(step.after.observation)
                self.returns.append(float(self._returned[place]))
                self._returned[place] = 0
                self._states[place], self._latents[place] = self._started()
        return self._observations(), (rewards * self.view.scale).astype(np.float32), overs, infos

    def _started(self) -> tuple[Imagined, NDArray[np.float32]]:
        return self.env.start(int(self._generator.integers(len(self.env.roots))))

    def _observations(self) -> Observation:
        return self.view.shown(np.stack([state.observation for state in self._states]))

    # The rest of `VecEnv`: there is one environment, so its attributes are those of all episodes.

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name)] * self._count(indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        if method_name == "action_masks":  # the only method whose result differs by episode
            places = self._get_indices(indices)
            masks = (self.env.codec.masks(self._states[place]) for place in places)
            return [np.concatenate(mask) for mask in masks]
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * self._count(
            indices
        )

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self._count(indices)

    def _count(self, indices: Any) -> int:
        return len(list(self._get_indices(indices)))
