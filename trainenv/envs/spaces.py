"""What the training environment and its synthetic twin share: spaces, masks, charges and the way in."""

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
    """A render mode that an environment lacks.

    A `TypeError` too: Stable-Baselines3 asks for `rgb_array`, and does without
    on that one alone.
    """


class SteeredEnv(gym.Env[Observation, NDArray[np.int64]]):
    """An environment whose actions are interventions and whose observations are `Features`.

    Args:
        interventions: the action space.
        environment: decision length, charges and the divergence cap.
    """

    def __init__(
        self,
        interventions: InterventionConfig,
        environment: EnvironmentConfig,
        render_mode: str | None,
    ) -> None:
        if render_mode is not None:
            raise NoSuchRenderMode(
                f"there is nothing to render: render_mode must be None, found {render_mode!r}; leave it out"
            )
        self.codec = ActionCodec(interventions)
        self.environment = environment
        self.observation_space = spaces.Box(-BOUND, BOUND, (len(FEATURES),), np.float32)
        self.action_space = spaces.MultiDiscrete(list(self.codec.sizes))
        self.render_mode = render_mode

    @property
    @abstractmethod
    def steered(self) -> InForce:
        """What the action masks depend on."""

    def action_masks(self) -> NDArray[np.bool_]:
        """Which values are legal now, the parts one after another: bool [sum(nvec)], as sb3-contrib's MaskablePPO takes it."""
        return np.concatenate(self.codec.masks(self.steered))

    def charges(self, *, events: int, share_elsewhere: float) -> float:
        """What a decision's reward is less than the fall in ln(validation loss).

        Args:
            events: times that the uncertainty index fired.
            share_elsewhere: share of the budget that went into anything but the run's own steps
                since the last decision.
        """
        return (
            self.environment.instability_charge * events
            + self.environment.compute_charge * share_elsewhere
        )


def snapshot_among(options: dict[str, Any] | None) -> Snapshot | None:
    """The one option that `reset` knows."""
    if unknown := set(options or {}) - {"snapshot"}:
        raise UserError(f"reset knows the option 'snapshot', found {', '.join(sorted(unknown))}")
    return (options or {}).get("snapshot")


def no_run() -> UserError:
    """What is raised where a run is needed and `reset` was not called."""
    return UserError("there is no run yet; call reset() first")


def episode_over() -> UserError:
    """What is raised where `step` is called after the end."""
    return UserError("the episode is over; call reset() before the next step()")
