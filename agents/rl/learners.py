"""What learns: hyperparameters of PPO and DQN as Stable-Baselines3 has them, which is imported when it is first used.

PPO (Schulman et al. 2017, arXiv:1707.06347) chooses each part of the action by itself. DQN (Mnih et
al. 2015) chooses a number, so it is given a short list, `USEFUL`. Neither is told what is masked:
the environment leaves those parts out.

Deviations: no discount, for rewards add up to the final loss; rewards are scaled up; PPO starts out
near doing nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from trainenv.envs.imagined_run import FORECAST, KNOWN
from trainenv.envs.observation import FEATURES
from trainenv.interventions import ActionCodec
from trainenv.tools.optional import require
from trainenv.types import Intervention, UserError

MOVING = (*KNOWN, *FORECAST)
"""Features that move in imagination; a policy that was trained there from a few roots is to see no others."""

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
"""What DQN chooses from: what people do by hand, one or two things at a time.

What an action space does not have is left out.
"""

SEEDS = 2**32
"""Seeds are below this."""
_WIDEST = 4096


@dataclass(frozen=True, kw_only=True)
class PPO:
    """Proximal policy optimisation.

    Args:
        decisions: to learn from.
        episodes: side by side, in imagination; a real run is alone.
        rollout: decisions of each episode between updates.
        epochs, batch: passes over a rollout, and decisions of a gradient step.
        lr: of Adam.
        trace: λ of the advantage estimates.
        clip: of the probability ratio.
        entropy: weight of the entropy bonus.
        reluctance: logit by which doing nothing leads in each part of the action at the start.
        width: of the two layers of policy and of value.
        scale: factor on rewards.
        sees: features that the policy is shown.
        seed: of everything that is drawn.
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
        """SB3's, over an environment."""
        sizes = env.action_space.nvec
        alone = not hasattr(env, "num_envs")
        together = self.rollout * (1 if alone else env.num_envs)
        made = stable_baselines3().PPO(
            "MlpPolicy",
            env,
            n_steps=self.rollout,
            n_epochs=self.epochs,
            batch_size=min(self.batch, together),
            learning_rate=self.lr,
            gamma=1.0,
            gae_lambda=self.trace,
            clip_range=self.clip,
            ent_coef=self.entropy,
            policy_kwargs={"net_arch": [self.width, self.width]},
            seed=self.seed,
            device="cpu",
        )
        with torch.no_grad():
            made.policy.action_net.bias[np.cumsum([0, *sizes[:-1]])] += self.reluctance
        return made

    def flops(self, learner: Any) -> float:
        """Of the policy's own passes so far: 2 a weight and decision to act, 6 to learn from it, in each epoch."""
        learned = learner._n_updates * self.rollout * learner.n_envs
        return _weights(learner.policy) * float(2 * learner.num_timesteps + 6 * learned)

    def most(self, learner: Any) -> float:
        """FLOPs that come at most from one decision of all episodes to the next, with an update between."""
        return _weights(learner.policy) * float(
            learner.n_envs * (2 + 6 * self.epochs * self.rollout)
        )


@dataclass(frozen=True, kw_only=True)
class DQN:
    """Deep Q-network over `USEFUL`.

    Args:
        decisions: to learn from; all are remembered.
        episodes: side by side, in imagination; a real run is alone.
        first: decisions before learning starts.
        updates: gradient steps for each decision of all episodes; `batch` decisions each.
        lr: of Adam.
        follow: decisions between copies to the target network.
        explore: share of the decisions over which chance gives way, down to 1 in 20.
        width: of the two layers.
        scale: factor on rewards.
        sees: features that the policy is shown.
        seed: of everything that is drawn.
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
        """SB3's, over an environment."""
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
        """Of the policy's own passes so far: 2 a weight and decision to act, 8 to learn from one, the target's pass included."""
        return _weights(learner.q_net) * float(
            2 * learner.num_timesteps + 8 * learner._n_updates * self.batch
        )

    def most(self, learner: Any) -> float:
        """FLOPs that come at most from one decision of all episodes to the next, with the updates between."""
        return _weights(learner.q_net) * float(2 * learner.n_envs + 8 * self.updates * self.batch)


Learner = PPO | DQN
LEARNERS: Mapping[str, type[Learner]] = {"ppo": PPO, "dqn": DQN}


def stable_baselines3() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    require("stable_baselines3", "training an agent by PPO or DQN")
    import stable_baselines3

    return stable_baselines3


def useful(codec: ActionCodec) -> tuple[Intervention, ...]:
    """Those of `USEFUL` that an action space has."""
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
        if not (isinstance(getattr(how, name), int) and getattr(how, name) >= 1):
            raise UserError(
                f"{name} must be a whole number, 1 or more, found {getattr(how, name)!r}"
            )
    if how.width > _WIDEST:
        raise UserError(f"width must be at most {_WIDEST}, found {how.width}")
    if not (isinstance(how.seed, int) and 0 <= how.seed < SEEDS):
        raise UserError(f"seed must be a whole number from 0 to {SEEDS - 1}, found {how.seed!r}")
    for name in rates:
        if not 0 < getattr(how, name) < math.inf:
            raise UserError(f"{name} must be a finite number above 0, found {getattr(how, name)!r}")
    if unknown := sorted(set(how.sees) - set(FEATURES)):
        raise UserError(
            f"sees must name features of the observation, found {', '.join(unknown)}; see Features"
        )


def _weights(network: Any) -> float:
    return float(sum(parameter.numel() for parameter in network.parameters()))
