"""Parts that all environments share: spaces, action masks, charges and errors."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from trainenv.config.schema import EnvironmentConfig, InterventionConfig
from trainenv.envs.observation import BOUND, FEATURES, explained
from trainenv.envs.rendering import MODES, as_picture, as_text
from trainenv.interventions import ActionCodec
from trainenv.types import InForce, Snapshot, UserError

if TYPE_CHECKING:
    import pandas as pd

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
        render_mode: `ansi` for text, `rgb_array` for a picture of the validation loss by decision;
            None to render nothing.

    Attributes:
        codec: Codec between actions and interventions.

    Raises:
        NoSuchRenderMode: Another render mode is given.
    """

    def __init__(
        self,
        interventions: InterventionConfig,
        environment: EnvironmentConfig,
        render_mode: str | None,
    ) -> None:
        if render_mode not in (None, *MODES):
            raise NoSuchRenderMode(
                f"render_mode must be {', '.join(MODES)} or None, found {render_mode!r}; leave it "
                "out"
            )
        self.codec = ActionCodec(interventions)
        self.environment = environment
        self.observation_space = spaces.Box(-BOUND, BOUND, (len(FEATURES),), np.float32)
        self.action_space = spaces.MultiDiscrete(list(self.codec.sizes))
        self.metadata = {"render_modes": list(MODES), "render_fps": 4}
        self.render_mode = render_mode
        self._losses: list[float] = []  # validation losses of the episode, by decision

    def explain(self, observation: Observation) -> pd.DataFrame:
        """Return an observation as a table: the value and the meaning of each feature.

        Args:
            observation: Observation, float32 [32], as `reset` and `step` return it.

        Raises:
            UserError: It has another length.
        """
        return explained(observation)

    def render(self) -> Any:
        """Return the validation loss by decision: text (`ansi`) or a picture (`rgb_array`)."""
        if self.render_mode is None:
            return None
        if self.render_mode == "rgb_array":
            return as_picture(self._losses)
        run = self.steered
        loss = self._losses[-1] if self._losses else math.nan
        words = (
            f"decision {max(0, len(self._losses) - 1)}, validation loss {loss:.3f}, "
            f"LR × {run.lr_scale:.3g}, {run.clip}"
        )
        return as_text(words, self._losses)

    def _noted(self, info: dict[str, Any], *, fresh: bool = False) -> dict[str, Any]:
        """Return the info of a decision with the action mask, and keep its loss for `render`.

        Args:
            info: Info of the decision.
            fresh: True at the start of an episode.
        """
        if fresh:
            self._losses = []
        self._losses.append(float(info["validation_loss"]))
        mask = [part.astype(int).tolist() for part in self.codec.masks(self.steered)]
        return {**info, "action_mask": mask}

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
