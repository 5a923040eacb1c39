"""Environments as learners of Stable-Baselines3 see them.

This imports that package, so import this module late.

A `View` says what differs: features that a policy is not to see are 0, rewards are scaled up (nats
are small beside what learners expect), DQN chooses from a short list in place of vectors, and the
end of the budget is an end: nothing comes after it that could be bootstrapped from.
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
    """How a learner sees an environment.

    Attributes:
        sees: names of the features that it is shown.
        actions: [A, 6] the vectors to choose from by number; None: vectors themselves.
        scale: factor on rewards.
    """

    sees: tuple[str, ...]
    actions: NDArray[np.int64] | None = None
    scale: float = 1.0

    def shown(self, observations: Observation) -> Observation:
        """Observations [..., 32], what is not to be seen 0."""
        return observations * np.isin(FEATURES, self.sees).astype(np.float32)

    def vector(self, choice: Any) -> NDArray[np.int64]:
        """The action vector [6] of what was chosen."""
        return (
            np.asarray(choice, dtype=np.int64)
            if self.actions is None
            else self.actions[int(choice)]
        )

    def choices(self, vectors: spaces.Space[Any]) -> spaces.Space[Any]:
        """The space to choose from."""
        return vectors if self.actions is None else spaces.Discrete(len(self.actions))


class Viewed(gym.Wrapper[Observation, Any, Observation, NDArray[np.int64]]):
    """A training environment as a learner sees it.

    Attributes:
        returns: of the episodes that have ended, in nats.
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
        """FLOPs that a decision, and the reset after it, cost at most as far as is known."""
        return self._reset_cost + self._step_cost

    @property
    def flops(self) -> dict[str, float]:
        """What all runs so far have spent, by purpose."""
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
    """Episodes of a `WorldModelEnv` side by side, a call of the model for all of them.

    An episode that ends starts anew.

    Attributes:
        returns: of the episodes that have ended, in nats.
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
            self._states[place], self._latents[place] = step.after, step.latent
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

    # What `VecEnv` asks for beside: there is one environment, so its attributes are those of all
    # episodes.

    def close(self) -> None:
        """There is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name)] * self._count(indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * self._count(
            indices
        )

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self._count(indices)

    def _count(self, indices: Any) -> int:
        return len(list(self._get_indices(indices)))
