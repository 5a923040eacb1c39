"""Policies that Stable-Baselines3 trains, in a world model's imagination or in real runs.

    trained = train_in_model(worldmodel.load_pretrained(), histories, config, PPO(decisions=20_000))
    trained.policy.act(observation, info)                       # an action vector
    trained.policy.save(Path("policy")); Policy.load(Path("policy"))

A policy's files are safetensors and JSON; SB3's own .zip holds pickled data, which is never read.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from trainenv.agents.rl.learners import DQN, LEARNERS, PPO, Learner, stable_baselines3, useful
from trainenv.config.schema import RunConfig, TrainingConfig
from trainenv.envs.observation import BOUND, FEATURES
from trainenv.envs.training import TrainingEnv
from trainenv.envs.world_model import Divergence, WorldModelEnv
from trainenv.interventions import PARTS, ActionCodec
from trainenv.tools.rng import exclusive
from trainenv.types import DECISIONS, RunHistory, UserError, WorldModel

__all__ = ["DQN", "PPO", "Policy", "Trained", "train_in_model", "train_in_run"]

FORMAT = "trainenv policy 1"
_CARD = "policy.json"
_WEIGHTS = "policy.safetensors"
_LARGEST = 1 << 26  # bytes of either file


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """An agent: what a learner has learned. Deterministic.

    Attributes:
        learner: how it was trained.
        sizes: of the parts of an action vector.
        actions: the vectors that it chooses from by number; None where it chooses each part.
        network: SB3's policy.
    """

    learner: Learner
    sizes: tuple[int, ...]
    actions: tuple[tuple[int, ...], ...] | None
    network: Any = field(repr=False)

    def act(
        self, observation: NDArray[np.float32], info: Mapping[str, Any], /
    ) -> NDArray[np.int64]:
        """The action vector, int64 [6]; `info` is not looked at."""
        shown = observation * np.isin(FEATURES, self.learner.sees).astype(np.float32)
        choice, _ = self.network.predict(shown, deterministic=True)
        return np.array(
            choice if self.actions is None else self.actions[int(choice)], dtype=np.int64
        )

    def save(self, folder: Path) -> None:
        """Write the weights and, beside them, what they are of."""
        from safetensors.torch import save

        weights = save(
            {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        )
        card = {
            "format": FORMAT,
            "digest": sha256(weights).hexdigest(),
            "features": list(FEATURES),
            "sizes": list(self.sizes),
            "actions": self.actions,
            "learner": {"name": self.learner.name, **asdict(self.learner)},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _WEIGHTS).write_bytes(weights)
        (folder / _CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Policy:
        """The policy that `save` wrote.

        Raises:
            UserError: there is none, or it is damaged, or of another version.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            sizes_of_files = [(folder / name).stat().st_size for name in (_CARD, _WEIGHTS)]
            if max(sizes_of_files) > _LARGEST:
                raise UserError(
                    f"expected files of at most {_LARGEST} bytes in {folder}, found {max(sizes_of_files)}"
                )
            card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
            weights = (folder / _WEIGHTS).read_bytes()
            if (card["format"], card["features"]) != (FORMAT, list(FEATURES)):
                raise UserError(
                    f"expected {FORMAT!r} over this version's features in {folder}, found another; train it anew"
                )
            if card["digest"] != sha256(weights).hexdigest():
                raise UserError(
                    f"expected the weights that {folder / _CARD} tells of, found others; train the policy anew"
                )
            settings = dict(card["learner"])
            learner = LEARNERS[settings.pop("name")](**settings | {"sees": tuple(settings["sees"])})
            sizes = tuple(int(size) for size in card["sizes"])
            actions = (
                None
                if card["actions"] is None
                else tuple(tuple(int(n) for n in vector) for vector in card["actions"])
            )
            for vector in [[size - 1 for size in sizes]] if actions is None else actions:
                if len(vector) != len(PARTS) or not all(
                    0 <= value < size for value, size in zip(vector, sizes, strict=True)
                ):
                    raise ValueError(f"{vector} is no action of {sizes}")
            network = _network(learner, sizes, actions)
            network.load_state_dict(load(weights))
        except OSError as error:
            raise UserError(
                f"expected a policy in {folder}, found no readable file ({error.strerror})"
            ) from None
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"expected a policy in {folder}, found something else ({error!r:.200}); train it anew"
            ) from None
        return Policy(learner=learner, sizes=sizes, actions=actions, network=network)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of training.

    Attributes:
        policy: an agent.
        decisions: that were taken to learn from.
        returns: of the episodes that ended, in their order, nats.
        flops: by purpose. `model`: of the policy's training and the calls of the world model, both
            estimated. Of real runs, all of them thrown away: `verify` their steps, `evaluate` their
            validations.
        stopped: it was asked to stop before it was done.
    """

    policy: Policy
    decisions: int
    returns: tuple[float, ...] = field(repr=False)
    flops: Mapping[str, float]
    stopped: bool


def train_in_model(
    model: WorldModel,
    histories: Sequence[RunHistory],
    config: TrainingConfig,
    learner: Learner | None = None,
    *,
    divergence: Divergence = "expected",
    reach: int | None = DECISIONS,
    flops: float = math.inf,
    flops_per_state: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a policy in a `WorldModelEnv`.

    Args:
        model: what imagines.
        histories: where episodes start.
        config: of the runs that they are of.
        learner: `PPO()` if left out.
        divergence: see `WorldModelEnv`; priced in, it is less noisy and several times as fast as
            drawn.
        reach: see `WorldModelEnv`; beyond four decisions the model's value is to be trusted more
            than its rewards.
        flops: that it may cost at most; it ends before the decision that could exceed them.
        flops_per_state: of the model, a state and a call; 2 for each weight of its networks if left
            out.
        stop: asked after each decision.
    """
    stable_baselines3()
    from trainenv.agents.rl.env_views import ImaginedEpisodes

    learner = learner or PPO()
    env = WorldModelEnv(model, histories, config, divergence=divergence, reach=reach)
    view, actions = _view(learner, env.codec)
    each = flops_of(model) if flops_per_state is None else flops_per_state
    asked = learner.episodes * (
        1 if divergence == "expected" else 2
    )  # of the model, from one decision of all to the next

    def spent(made: Any) -> float:
        return learner.flops(made) + env.futures * each

    with _contained():
        episodes = ImaginedEpisodes(env, view, episodes=learner.episodes, seed=learner.seed)
        made, stopped = _learn(
            learner,
            episodes,
            lambda made: stop() or spent(made) + learner.most(made) + asked * each > flops,
        )
    return Trained(
        policy=Policy(learner=learner, sizes=env.codec.sizes, actions=actions, network=made.policy),
        decisions=made.num_timesteps,
        returns=tuple(episodes.returns),
        flops={"model": spent(made)},
        stopped=stopped,
    )


def train_in_run(
    config: RunConfig,
    learner: Learner | None = None,
    *,
    flops: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a policy in a `TrainingEnv`, one real episode after another, and throw the runs away.

    Args:
        config: of the episodes; make it short.
        learner: `PPO(sees=FEATURES)` over short rollouts if left out.
        flops: that real runs may cost at most; it ends before the decision that could exceed them.
        stop: asked after each decision.
    """
    stable_baselines3()
    from trainenv.agents.rl.env_views import Viewed

    learner = learner or PPO(sees=FEATURES, rollout=16, batch=16)
    env = TrainingEnv(config)
    view, actions = _view(learner, env.codec)
    with _contained():
        viewed = Viewed(env, view)
        made, stopped = _learn(
            learner, viewed, lambda _: stop() or sum(viewed.flops.values()) + viewed.dearest > flops
        )
    spent = viewed.flops
    return Trained(
        policy=Policy(learner=learner, sizes=env.codec.sizes, actions=actions, network=made.policy),
        decisions=made.num_timesteps,
        returns=tuple(viewed.returns),
        flops={
            "model": learner.flops(made),
            "verify": spent["main"],
            "evaluate": spent["evaluate"],
        },
        stopped=stopped,
    )


def flops_of(model: WorldModel) -> float:
    """FLOPs of a model's call, a state: 2 for each weight of its `networks`; 0 where it has none.

    An inference passes through some of the networks and a forecast several times through them, so
    it is of that order.
    """
    networks = getattr(model, "networks", None)
    return (
        0.0
        if networks is None
        else 2.0 * sum(parameter.numel() for parameter in networks.parameters())
    )


def _learn(learner: Learner, env: Any, stop: Callable[[Any], bool]) -> tuple[Any, bool]:
    """SB3's learner when it is done, and whether it was stopped; `stop` is told of it after each decision."""
    made = learner.learner(env)
    asked = False

    def go_on(_: Any, __: Any) -> bool:
        nonlocal asked
        asked = stop(made)
        return not asked

    made.learn(learner.decisions, callback=go_on)
    made.policy.set_training_mode(False)
    return made, asked


def _view(learner: Learner, codec: ActionCodec) -> tuple[Any, tuple[tuple[int, ...], ...] | None]:
    """How a learner sees an environment, and the action vectors that it chooses from."""
    from trainenv.agents.rl.env_views import View

    if isinstance(learner, PPO):
        return View(sees=learner.sees, scale=learner.scale), None
    vectors = np.array([codec.encode(intervention) for intervention in useful(codec)])
    return View(sees=learner.sees, scale=learner.scale, actions=vectors), tuple(
        map(tuple, vectors.tolist())
    )


def _network(
    learner: Learner, sizes: tuple[int, ...], actions: tuple[tuple[int, ...], ...] | None
) -> Any:
    """The network of such a policy, untrained."""
    stable_baselines3()
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.dqn.policies import DQNPolicy

    observations = spaces.Box(-BOUND, BOUND, (len(FEATURES),), np.float32)
    layers = [learner.width, learner.width]
    with _contained():
        if actions is None:
            made: Any = ActorCriticPolicy(
                observations, spaces.MultiDiscrete(list(sizes)), lambda _: 0.0, net_arch=layers
            )
        else:
            made = DQNPolicy(
                observations, spaces.Discrete(len(actions)), lambda _: 0.0, net_arch=layers
            )
    made.set_training_mode(False)
    return made


@contextmanager
def _contained() -> Iterator[None]:
    """SB3 seeds and draws from the generators of the process, which are nobody else's business; on one thread, for its sums."""
    with exclusive():
        python, numpy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()  # noqa: NPY002
        torch.set_num_threads(1)
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            torch.set_num_threads(threads)
