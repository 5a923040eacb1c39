"""Learners: hyperparameters of PPO and DQN for Stable-Baselines3.

PPO (Schulman et al. 2017, arXiv:1707.06347) chooses each part of the action separately, and
MaskablePPO (Huang & Ontañón 2022, arXiv:2006.14171, of sb3-contrib) among its legal values only.
DQN (Mnih et al. 2015) chooses a number, here from the short list `USEFUL`. PPO and DQN get no
action masks: the environment leaves illegal parts out.

Deviations: rewards are not discounted, because they add up to the fall of the final loss. Rewards
are scaled up. PPO starts near the policy that leaves the run alone.

Stable-Baselines3 is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from trainenv.envs.imagined_run import FORECAST, KNOWN
from trainenv.envs.observation import FEATURES
from trainenv.interventions import ActionCodec
from trainenv.tools.checks import number, whole
from trainenv.tools.optional import require
from trainenv.types import Intervention, UserError

MOVING = (*KNOWN, *FORECAST)
"""Features that change in the world model.

A policy that is trained there from a few roots should see no others.
"""

USEFUL = (
    Intervention(),
    Intervention(lr_scale=0.8),
    Intervention(lr_scale=0.9),
    Intervention(lr_scale=1.1),
    Intervention(clip="zclip"),
    Intervention(clip="arc"),
    Intervention(lr_scale=0.8, clip="zclip"),
    Intervention(weight_decay_scale=0.5),
    Intervention(weight_decay_scale=2.0),
    Intervention(lr_scale=0.8, momentum_reset=True),
    Intervention(skip_batch=True),
)
"""Interventions that DQN chooses from: those that people make by hand, one or two at a time.

Those that an action space does not have are left out.
"""

SEEDS = 2**32
"""Upper bound of seeds."""
_WIDEST = 4096  # units of a layer


@dataclass(frozen=True, kw_only=True)
class PPO:
    """Proximal policy optimisation.

    Args:
        decisions: Number of decisions to learn from.
        episodes: Number of episodes at once in the world model; a real run is a single one.
        rollout: Decisions of each episode between two updates.
        epochs: Number of passes over a rollout.
        batch: Decisions of a gradient step.
        lr: Learning rate of Adam.
        trace: λ of the advantage estimates.
        clip: Clip range of the probability ratio.
        entropy: Weight of the entropy bonus.
        reluctance: Initial lead of leaving the run alone, a logit for each part of the action.
        width: Units of each of the two layers of policy and value.
        scale: Factor on rewards.
        sees: Names of the features that the policy sees.
        seed: Random seed.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    name: ClassVar[str] = "ppo"

    decisions: int = 20_000
    episodes: int = 32
    rollout: int = 16
    epochs: int = 4
    batch: int = 256
    lr: float = 3e-3
    trace: float = 0.95
    clip: float = 0.2
    entropy: float = 0.003
    reluctance: float = 1.0
    width: int = 64
    scale: float = 100.0
    sees: tuple[str, ...] = MOVING
    seed: int = 0

    def __post_init__(self) -> None:
        _check(
            self,
            counts=("decisions", "episodes", "rollout", "epochs", "batch", "width"),
            rates=("lr", "scale"),
        )

    def learner(self, env: Any) -> Any:
        """Return the PPO of Stable-Baselines3 for an environment."""
        sizes = env.action_space.nvec
        made = self._class()(
            "MlpPolicy",
            env,
            gamma=1.0,
            clip_range=self.clip,
            policy_kwargs={"net_arch": [self.width, self.width]},
            **rollout_arguments(self, env),
        )
        with torch.no_grad():
            made.policy.action_net.bias[np.cumsum([0, *sizes[:-1]])] += self.reluctance
        return made

    def _class(self) -> Any:
        """Return the class of Stable-Baselines3 that learns."""
        return stable_baselines3().PPO

    def flops(self, learner: Any) -> float:
        """Return the FLOPs of the policy so far.

        They are 2 for each weight and decision to act, and 6 in each epoch to learn.
        """
        learned = learner._n_updates * self.rollout * learner.n_envs
        return _weights(learner.policy) * float(2 * learner.num_timesteps + 6 * learned)

    def most(self, learner: Any) -> float:
        """Return the most FLOPs from one decision of all episodes to the next, with an update."""
        return _weights(learner.policy) * float(
            learner.n_envs * (2 + 6 * self.epochs * self.rollout)
        )


@dataclass(frozen=True, kw_only=True)
class MaskablePPO(PPO):
    """Proximal policy optimisation that never chooses an illegal part of an action."""

    name: ClassVar[str] = "maskable_ppo"

    def _class(self) -> Any:
        return sb3_contrib().MaskablePPO


@dataclass(frozen=True, kw_only=True)
class DQN:
    """Deep Q-network over `USEFUL`.

    Args:
        decisions: Number of decisions to learn from; all of them stay in the replay buffer.
        episodes: Number of episodes at once in the world model; a real run is a single one.
        first: Number of decisions before learning starts.
        updates: Gradient steps for each decision of all episodes.
        batch: Decisions of a gradient step.
        lr: Learning rate of Adam.
        follow: Decisions between two copies to the target network.
        explore: Share of the decisions over which random choices fall to 1 in 20.
        width: Units of each of the two layers.
        scale: Factor on rewards.
        sees: Names of the features that the policy sees.
        seed: Random seed.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    name: ClassVar[str] = "dqn"

    decisions: int = 20_000
    episodes: int = 16
    first: int = 1000
    updates: int = 4
    batch: int = 128
    lr: float = 1e-3
    follow: int = 1000
    explore: float = 0.5
    width: int = 64
    scale: float = 100.0
    sees: tuple[str, ...] = MOVING
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("decisions", "episodes", "first", "updates", "batch", "follow", "width")
        _check(self, counts=counts, rates=("lr", "explore", "scale"))

    def learner(self, env: Any) -> Any:
        """Return the DQN of Stable-Baselines3 for an environment."""
        return stable_baselines3().DQN(
            "MlpPolicy",
            env,
            buffer_size=self.decisions,
            learning_starts=self.first,
            train_freq=1,
            gradient_steps=self.updates,
            batch_size=self.batch,
            learning_rate=self.lr,
            gamma=1.0,
            target_update_interval=self.follow,
            exploration_fraction=self.explore,
            policy_kwargs={"net_arch": [self.width, self.width]},
            seed=self.seed,
            device="cpu",
        )

    def flops(self, learner: Any) -> float:
        """Return the FLOPs of the policy so far.

        They are 2 for each weight and decision to act, and 8 to learn, the target network included.
        """
        return _weights(learner.q_net) * float(
            2 * learner.num_timesteps + 8 * learner._n_updates * self.batch
        )

    def most(self, learner: Any) -> float:
        """Return the most FLOPs from one decision of all episodes to the next, with updates."""
        return _weights(learner.q_net) * float(2 * learner.n_envs + 8 * self.updates * self.batch)


Learner = PPO | DQN
LEARNERS: Mapping[str, type[Learner]] = {"ppo": PPO, "maskable_ppo": MaskablePPO, "dqn": DQN}


def stable_baselines3() -> Any:
    """Import the package and return it.

    Raises:
        UserError: It is not installed.
    """
    require("stable_baselines3", "training an agent by PPO or DQN")
    import stable_baselines3

    return stable_baselines3


def sb3_contrib() -> Any:
    """Import the package with MaskablePPO and return it.

    Raises:
        UserError: It is not installed.
    """
    require("sb3_contrib", "training an agent by MaskablePPO")
    import sb3_contrib

    return sb3_contrib


class RolloutSettings(Protocol):
    """Hyperparameters that every PPO has; see `PPO`."""

    @property
    def rollout(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def trace(self) -> float: ...
    @property
    def entropy(self) -> float: ...
    @property
    def seed(self) -> int: ...


def rollout_arguments(how: RolloutSettings, env: Any) -> dict[str, Any]:
    """Return the arguments of PPO of Stable-Baselines3 for the hyperparameters that every PPO has.

    Args:
        how: Hyperparameters.
        env: Environment, or several at once.
    """
    return {
        "n_steps": how.rollout,
        "n_epochs": how.epochs,
        "batch_size": min(how.batch, how.rollout * getattr(env, "num_envs", 1)),
        "learning_rate": how.lr,
        "gae_lambda": how.trace,
        "ent_coef": how.entropy,
        "seed": how.seed,
        "device": "cpu",
    }


def check_seed(seed: object) -> None:
    """Check a random seed.

    Raises:
        UserError: It is no whole number that Stable-Baselines3 takes.
    """
    if whole("seed", seed, least=0) >= SEEDS:
        raise UserError(f"seed must be below {SEEDS}, found {seed}; give a smaller one")


def useful(codec: ActionCodec) -> tuple[Intervention, ...]:
    """Return those of `USEFUL` that an action space has."""
    found = []
    for intervention in USEFUL:
        try:
            codec.encode(intervention)
        except UserError:
            continue
        if codec.config.allow_skip_batch or not intervention.skip_batch:
            found.append(intervention)
    return tuple(found)


def _check(how: Learner, *, counts: Sequence[str], rates: Sequence[str]) -> None:
    for name in counts:
        whole(name, getattr(how, name), least=1)
    if how.width > _WIDEST:
        raise UserError(f"width must be at most {_WIDEST}, found {how.width}; give a smaller one")
    check_seed(how.seed)
    for name in rates:
        number(name, getattr(how, name), above=0)
    if unknown := sorted(set(how.sees) - set(FEATURES)):
        raise UserError(
            f"sees must name features of the observation, found {', '.join(unknown)}; see Features"
        )


def _weights(network: Any) -> float:
    return float(sum(parameter.numel() for parameter in network.parameters()))
