"""PPO (Schulman et al. 2017, arXiv:1707.06347) over thresholds.

The agent walks: it observes the settings, and optionally the context of the task, and moves the
settings. Its two networks have two layers of 64 units; the policy gives a mean and a standard
deviation for each move. Advantages are GAE (Schulman et al. 2016, arXiv:1506.02438).

In a single task without context the walk is a bandit in disguise: the best settings do not depend
on where the agent is. Expect other methods to need fewer evaluations; PPO is for training over many
tasks with a context, see `train_policy`.

Stable-Baselines3 is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from trainenv.agents.rl.contained import contained
from trainenv.agents.rl.learners import check_seed, rollout_arguments, stable_baselines3
from trainenv.agents.thresholds.contract import Floats, TuningProblem
from trainenv.agents.thresholds.walk import ThresholdWalk, moved, observed
from trainenv.tools.checks import number, whole
from trainenv.types import UserError

_ANY_MOVES = 6  # of a policy from the start until it settles


@dataclass(frozen=True, kw_only=True)
class PPO:
    """Learn to move the settings.

    Args:
        rollout: Moves between two updates.
        episode: Moves of an episode.
        epochs: Number of passes over a rollout.
        batch: Moves of a gradient step.
        lr: Learning rate of Adam at the start.
        patience: Number of rollouts without a better mean reward before the rate falls.
        factor: Factor on the rate then.
        least_lr: Lowest learning rate.
        discount: Discount γ of the reward of the next move.
        trace: λ of the advantage estimates.
        clip: Clip range of the probability ratio.
        max_grad_norm: Norm to which gradients are clipped.
        entropy: Weight of the entropy bonus.
        spread: Standard deviation of a move at the start, in steps.
        steps: Largest move of each setting, as shares of its range; the last is used for all
            further settings.
        width: Units of each of the two layers of policy and value.
        replay: Number of earlier moves kept for replay; 0 for none.
        limit: Bound of the importance weight of a replayed move.
        share: Weight of the replayed loss.
        seed: Random seed.

    Raises:
        UserError: A hyperparameter is out of range, or stable-baselines3 is not installed.
    """

    name: ClassVar[str] = "ppo"

    rollout: int = 16
    episode: int = 8
    epochs: int = 6
    batch: int = 16
    lr: float = 3e-3
    patience: int = 8
    factor: float = 0.5
    least_lr: float = 1e-5
    discount: float = 0.9
    trace: float = 0.95
    clip: float = 0.2
    max_grad_norm: float = 0.5
    entropy: float = 0.003
    spread: float = 0.6
    steps: tuple[float, ...] = (0.3, 0.15)
    width: int = 64
    replay: int = 512
    limit: float = 2.0
    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rollout", "batch"):
            whole(name, getattr(self, name), least=2)
        for name in ("episode", "epochs", "patience", "width"):
            whole(name, getattr(self, name), least=1)
        for name in ("lr", "least_lr", "max_grad_norm", "spread", "limit"):
            number(name, getattr(self, name), above=0)
        for name in ("discount", "trace", "factor"):
            number(name, getattr(self, name), least=0, most=1)
        for name in ("entropy", "share"):
            number(name, getattr(self, name), least=0)
        number("clip", self.clip, above=0, below=1)
        whole("replay", self.replay, least=0)
        check_seed(self.seed)
        if not self.steps or not all(0 < step <= 1 for step in self.steps):
            raise UserError(
                f"steps must be shares above 0 and at most 1, found {self.steps!r}; "
                "give one for each setting"
            )
        stable_baselines3()

    def search(self, problem: TuningProblem, /) -> None:
        """Walk from the middle until the budget is spent."""
        walk = ThresholdWalk(
            [problem],
            np.zeros((1, 0)),
            steps=self.moves(problem.space.dimensions).tolist(),
            length=self.episode,
            start=np.full(problem.space.dimensions, 0.5),
        )
        with contained():
            made = self.learner(walk)
            made.learn(problem.budget, callback=lambda *_: problem.left > 0)

    def moves(self, dimensions: int) -> Floats:
        """Return the largest move of each setting, [D]."""
        listed = [*self.steps, *([self.steps[-1]] * dimensions)]
        return np.array(listed[:dimensions])

    def learner(self, env: Any) -> Any:
        """Return the learner for an environment; call it inside `contained`."""
        from trainenv.agents.thresholds.ppo_learner import GaussianPolicy, ReplayPPO

        return ReplayPPO(
            GaussianPolicy,
            env,
            gamma=self.discount,
            max_grad_norm=self.max_grad_norm,
            policy_kwargs={
                "net_arch": [self.width, self.width],
                "log_std_init": float(np.log(self.spread)),
            },
            clip=self.clip,
            replay=self.replay,
            limit=self.limit,
            share=self.share,
            patience=self.patience,
            factor=self.factor,
            least_rate=self.least_lr,
            **rollout_arguments(self, env),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ThresholdPolicy:
    """Trained policy: it maps the context of a task to settings.

    Attributes:
        network: Policy of Stable-Baselines3.
        steps: Largest move of each setting, [D].
    """

    network: Any = field(repr=False)
    steps: Floats

    def settle(self, context: Floats, moves: int = _ANY_MOVES) -> Floats:
        """Return the point [D] that the mean moves reach from the middle of all ranges.

        Args:
            context: Context of the task, [C].
            moves: Number of moves.
        """
        point: Floats = np.full(len(self.steps), 0.5)
        for _ in range(moves):
            action, _ = self.network.predict(observed(point, context), deterministic=True)
            point = moved(point, action, self.steps)
        return point


def train_policy(
    learner: PPO,
    problems: Sequence[TuningProblem],
    contexts: Floats,
    *,
    moves: int,
    together: int = 8,
    stop: Callable[[], bool] = lambda: False,
) -> ThresholdPolicy:
    """Train one policy over many tasks.

    Args:
        learner: Hyperparameters.
        problems: Tasks; their budgets must cover the moves.
        contexts: Context of each task, [T, C].
        moves: Number of moves to learn from, all tasks together.
        together: Number of episodes at once.
        stop: Function to call after each move; True stops the training.
    """
    stable_baselines3()
    from stable_baselines3.common.vec_env import DummyVecEnv

    steps = learner.moves(problems[0].space.dimensions)

    def make() -> ThresholdWalk:
        return ThresholdWalk(problems, contexts, steps=steps.tolist(), length=learner.episode)

    with contained():
        made = learner.learner(DummyVecEnv([make] * together))
        made.learn(moves, callback=lambda *_: not stop())
    made.policy.set_training_mode(False)
    return ThresholdPolicy(network=made.policy, steps=steps)
