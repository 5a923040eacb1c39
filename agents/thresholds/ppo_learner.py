"""PPO of Stable-Baselines3 with the parts that it lacks.

The module imports that package, so import it late. Added are:

- a policy whose network gives a mean and a standard deviation for each action (Stable-Baselines3
  has one standard deviation for all states);
- a learning rate that falls when the reward of a rollout no longer rises;
- replay of earlier rollouts. Each sample keeps its behaviour log-probability ln b(a|s), and is
  weighted by ρ = min(π(a|s) / b(a|s), c). With c = ∞ the estimate is unbiased; a finite c trades
  variance for a bias towards the behaviour (Munos et al. 2016, arXiv:1606.02647; Espeholt et al.
  2018, arXiv:1802.01561);
- guards: a reward that is not finite becomes the worst reward so far; an update whose loss or
  gradient is not finite is skipped; means and log-ratios are bounded.

Advantages (GAE), the rollout and the networks are those of Stable-Baselines3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau

Floats = NDArray[np.float32]
LOG_STD = (-4.0, 1.0)
"""Bounds of the logarithm of a standard deviation."""
_MEAN = 10.0  # bound of a mean; actions are in −1 … 1
_LOG_RATIO = 20.0  # bound of the logarithm of a probability ratio


class GaussianPolicy(ActorCriticPolicy):
    """Policy with two layers, whose network gives mean and standard deviation of each action."""

    def _build(self, lr_schedule: Any) -> None:
        start = self.log_std_init
        super()._build(lr_schedule)
        self.std_net = nn.Linear(
            self.mlp_extractor.latent_dim_pi, get_action_dim(self.action_space)
        )
        nn.init.orthogonal_(self.std_net.weight, gain=0.01)
        nn.init.constant_(self.std_net.bias, start)
        del self.log_std
        made: Any = self.optimizer_class
        self.optimizer = made(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Any:
        mean = torch.nan_to_num(self.action_net(latent_pi)).clamp(-_MEAN, _MEAN)
        log_std = torch.nan_to_num(self.std_net(latent_pi), nan=LOG_STD[0]).clamp(*LOG_STD)
        return self.action_dist.proba_distribution(mean, log_std)


class GuardedRollout(RolloutBuffer):
    """Rollout in which a reward that is not finite becomes the worst finite reward so far.

    Attributes:
        replaced: Number of rewards that were replaced.
    """

    replaced = 0
    _worst = 0.0
    _seen = False

    def add(
        self, obs: Any, action: Any, reward: Any, episode_start: Any, value: Any, log_prob: Any
    ) -> None:
        rewards = np.asarray(reward, dtype=np.float64)
        sound = np.isfinite(rewards)
        if sound.any():
            least = float(rewards[sound].min())
            self._worst = min(self._worst, least) if self._seen else least
            self._seen = True
        self.replaced += int((~sound).sum())
        super().add(
            obs, action, np.where(sound, rewards, self._worst), episode_start, value, log_prob
        )


@dataclass
class Replay:
    """Samples of earlier rollouts, the newest `size` of them.

    Args:
        size: Largest number of samples; 0 keeps none.
        rng: Generator that draws batches.
    """

    size: int
    rng: np.random.Generator
    _parts: list[Floats] = field(default_factory=list, init=False, repr=False)

    def __len__(self) -> int:
        return len(self._parts[0]) if self._parts else 0

    def add(self, *parts: Floats) -> None:
        """Add samples: arrays [N, …] of observations, actions, log-probabilities and returns."""
        if self.size < 1:
            return
        if self._parts:
            parts = tuple(np.concatenate([old, new]) for old, new in zip(self._parts, parts))
        self._parts = [part[-self.size :].copy() for part in parts]

    def draw(self, count: int) -> tuple[Tensor, ...]:
        """Return `count` samples, drawn with replacement, as tensors."""
        places = self.rng.integers(len(self), size=count)
        return tuple(torch.as_tensor(part[places]) for part in self._parts)


def truncated_weights(new: Tensor, behaviour: Tensor, limit: float) -> Tensor:
    """Return the importance weights min(π/b, c) of samples, [N].

    Args:
        new: Log-probabilities of the actions under the policy, [N].
        behaviour: Log-probabilities under the policy that drew them, [N].
        limit: Bound c of a weight; inf for none.
    """
    ratio = torch.exp((new - behaviour).clamp(-_LOG_RATIO, _LOG_RATIO))
    return ratio.clamp(max=limit)


class ReplayPPO(PPO):
    """PPO with replay, a rate that falls on a plateau, and guards.

    Args:
        clip: Clip range of the probability ratio.
        replay: Number of samples kept for replay; 0 for none.
        limit: Bound c of an importance weight.
        share: Weight of the replayed loss.
        patience: Number of rollouts without a better mean reward before the rate falls.
        factor: Factor on the rate then.
        least_rate: Lowest learning rate.
        others: Arguments of `stable_baselines3.PPO`.

    Attributes:
        first_ratios: Probability ratios of the first batch after each rollout, [N].
        skipped: Number of updates that were skipped because they were not finite.
    """

    def __init__(
        self,
        *args: Any,
        clip: float,
        replay: int,
        limit: float,
        share: float,
        patience: int,
        factor: float,
        least_rate: float,
        **others: Any,
    ) -> None:
        others["rollout_buffer_class"] = GuardedRollout
        super().__init__(*args, **others)
        self.replay = Replay(replay, np.random.default_rng(self.seed))
        self.first_ratios = torch.ones(0)
        self.skipped = 0
        self._clip = clip
        self._limit = limit
        self._share = share
        self._plateau = ReduceLROnPlateau(
            self.policy.optimizer,
            mode="max",
            factor=factor,
            patience=patience,
            threshold=1e-3,
            min_lr=least_rate,
        )

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        return float(self.policy.optimizer.param_groups[0]["lr"])

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Leave the rate to the plateau schedule."""

    def train(self) -> None:
        """Update policy and value from the rollout and from replay."""
        self.policy.set_training_mode(True)
        mean_reward = float(self.rollout_buffer.rewards.mean())
        first = True
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                self._update(batch, first)
                first = False
            self._n_updates += 1
        buffer = self.rollout_buffer  # flat by now, [N, …]
        self.replay.add(
            buffer.observations, buffer.actions, buffer.log_probs.ravel(), buffer.returns.ravel()
        )
        self._plateau.step(mean_reward)

    def _update(self, batch: Any, first: bool) -> None:
        """Take one gradient step, unless it is not finite."""
        loss, ratio = self._clipped_loss(batch)
        if first:
            self.first_ratios = ratio.detach()
        if len(self.replay) and self._share > 0:
            loss = loss + self._share * self._replayed_loss(len(batch.observations))
        self.policy.optimizer.zero_grad()
        if torch.isfinite(loss):
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            if torch.isfinite(norm):
                self.policy.optimizer.step()
                return
        self.policy.optimizer.zero_grad()
        self.skipped += 1

    def _clipped_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the loss of PPO on fresh samples, and the probability ratios [N]."""
        values, new, entropy = self.policy.evaluate_actions(batch.observations, batch.actions)
        assert entropy is not None  # a Gaussian has one
        ratio = truncated_weights(new, batch.old_log_prob, math.inf)
        advantage = _standard(batch.advantages)
        clip = self._clip
        inside = ratio.clamp(1 - clip, 1 + clip)
        surrogate = torch.min(ratio * advantage, inside * advantage).mean()
        error = functional.mse_loss(values.flatten(), batch.returns)
        return self.vf_coef * error - surrogate - self.ent_coef * entropy.mean(), ratio

    def _replayed_loss(self, count: int) -> Tensor:
        """Return the loss on replayed samples, with truncated importance weights.

        The advantage is the return at the time less the value now. The weight is no part of the
        gradient: it multiplies ∇ ln π.
        """
        observations, actions, behaviour, returns = self.replay.draw(count)
        values, new, _ = self.policy.evaluate_actions(observations, actions)
        weight = truncated_weights(new, behaviour, self._limit).detach()
        advantage = _standard(returns - values.flatten().detach())
        error = (weight * (values.flatten() - returns) ** 2).mean()
        return self.vf_coef * error - (weight * advantage * new).mean()


def _standard(advantages: Tensor) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1."""
    if len(advantages) < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
