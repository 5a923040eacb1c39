"""Parts that all environments share: spaces, action masks, charges and errors."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from trainenv.config.schema import EnvironmentConfig, InterventionConfig
from trainenv.envs.observation import BOUND, FEATURES
from trainenv.interventions import ActionCodec
from trainenv.types import InForce, Snapshot, UserError

Observation = NDArray[np.float32]


class NoSuchRenderMode(UserError, TypeError):
    """The error for a render mode that an environment does not have.

    It is a `TypeError` too: Stable-Baselines3 asks for `rgb_array`, and continues without it after
    a `TypeError` alone.
    """


class SteeredEnv(gym.Env[Observation, NDArray[np.int64]]):
    """An environment whose actions are interventions and whose observations are `Features`.

    Args:
        interventions: Configuration of the action space.
        environment: Configuration of decision length, charges and divergence cap.
        render_mode: None; nothing is rendered.

    Attributes:
        codec: Codec between actions and interventions.

    Raises:
        NoSuchRenderMode: A render mode is given.
    """

    def __init__(
        self,
        interventions: InterventionConfig,
        environment: EnvironmentConfig,
        render_mode: str | None,
    ) -> None:
        if render_mode is not None:
            raise NoSuchRenderMode(
                f"there is nothing to render: render_mode must be None, found {render_mode!r}; "
                "leave it out"
            )
        self.codec = ActionCodec(interventions)
        self.environment = environment
        self.observation_space = spaces.Box(-BOUND, BOUND, (len(FEATURES),), np.float32)
        self.action_space = spaces.MultiDiscrete(list(self.codec.sizes))
        self.render_mode = render_mode

    @property
    @abstractmethod
    def steered(self) -> InForce:
        """State that the action masks depend on."""

    def action_masks(self) -> NDArray[np.bool_]:
        """Return True for each action value that is legal now, bool [sum(nvec)], part after part.

        This is the form that MaskablePPO of sb3-contrib takes.
        """
        return np.concatenate(self.codec.masks(self.steered))

    def charges(self, *, events: int, share_elsewhere: float) -> float:
        """Return the amount that is taken off the reward of a decision, nats.

        Args:
            events: Number of times that the uncertainty index fired.
            share_elsewhere: Share of the budget, 0 to 1, that was spent since the last decision on
                anything but the run's own steps.
        """
        return (
            self.environment.instability_charge * events
            + self.environment.compute_charge * share_elsewhere
        )


def snapshot_among(options: dict[str, Any] | None) -> Snapshot | None:
    """Return the snapshot among the options of `reset`, None if there is none."""
    if unknown := set(options or {}) - {"snapshot"}:
        raise UserError(
            f"reset knows the option 'snapshot', found {', '.join(sorted(unknown))}; leave it out"
        )
    return (options or {}).get("snapshot")


def no_run() -> UserError:
    """Return the error for an environment that needs `reset` before anything else."""
    return UserError("there is no run yet; call reset() first")


def episode_over() -> UserError:
    """Return the error for a `step` after the end of an episode."""
    return UserError("the episode is over; call reset() before the next step()")
