"""Policies that Stable-Baselines3 trains, in a world model or in real runs.

    trained = train_in_model(worldmodel.load_pretrained(), histories, config, PPO(decisions=20_000))
    trained.policy.act(observation, info)                       # an action vector
    trained.policy.save(Path("policy")); Policy.load(Path("policy"))

The files of a policy are safetensors and JSON. The .zip files of Stable-Baselines3 hold pickled
data and are never read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from trainenv.agents.rl.contained import contained
from trainenv.agents.rl.learners import (
    DQN,
    LEARNERS,
    PPO,
    Learner,
    MaskablePPO,
    sb3_contrib,
    stable_baselines3,
    useful,
)
from trainenv.config.schema import RunConfig, TrainingConfig
from trainenv.envs.observation import BOUND, FEATURES
from trainenv.envs.training import TrainingEnv
from trainenv.envs.world_model import Divergence, WorldModelEnv
from trainenv.interventions import ActionCodec
from trainenv.types import DECISIONS, RunHistory, UserError, WorldModel

__all__ = ["DQN", "PPO", "Policy", "Trained", "train_in_model", "train_in_run"]

FORMAT = "trainenv policy 1"
_CARD = "policy.json"
_WEIGHTS = "policy.safetensors"
_LARGEST = 1 << 26  # bytes of either file


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """Agent with a trained network; it is deterministic.

    Attributes:
        learner: Learner that trained it.
        sizes: Number of values of each part of an action vector.
        actions: Action vectors that it chooses from by number; None to choose each part.
        network: Policy of Stable-Baselines3.
    """

    learner: Learner
    sizes: tuple[int, ...]
    actions: tuple[tuple[int, ...], ...] | None
    network: Any = field(repr=False)

    def act(
        self, observation: NDArray[np.float32], info: Mapping[str, Any], /
    ) -> NDArray[np.int64]:
        """Return the action vector, int64 [6].

        Args:
            observation: Observation, float32 [32].
            info: Info of the decision; a policy of MaskablePPO reads its `action_masks`.
        """
        shown = observation * np.isin(FEATURES, self.learner.sees).astype(np.float32)
        more = {}
        if isinstance(self.learner, MaskablePPO) and "action_masks" in info:
            more["action_masks"] = info["action_masks"]
        choice, _ = self.network.predict(shown, deterministic=True, **more)
        if self.actions is not None:
            choice = self.actions[int(choice)]
        return np.array(choice, dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Write the weights and a card that describes them."""
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
        """Return the policy that `save` wrote.

        Raises:
            UserError: The folder has none, or it is damaged or of another version.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            sizes_of_files = [(folder / name).stat().st_size for name in (_CARD, _WEIGHTS)]
            if max(sizes_of_files) > _LARGEST:
                raise UserError(
                    f"expected files of at most {_LARGEST} bytes in {folder}, "
                    f"found {max(sizes_of_files)}; train the policy anew"
                )
            card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
            weights = (folder / _WEIGHTS).read_bytes()
            if (card["format"], card["features"]) != (FORMAT, list(FEATURES)):
                raise UserError(
                    f"expected {FORMAT!r} with the features of this version in {folder}, "
                    "found another; train it anew"
                )
            if card["digest"] != sha256(weights).hexdigest():
                raise UserError(
                    f"expected the weights that {folder / _CARD} describes, found others; "
                    "train the policy anew"
                )
            settings = dict(card["learner"])
            learner = LEARNERS[settings.pop("name")](**settings | {"sees": tuple(settings["sees"])})
            sizes = tuple(int(size) for size in card["sizes"])
            actions: tuple[tuple[int, ...], ...] | None = None
            checked: Sequence[tuple[int, ...]] = [tuple(size - 1 for size in sizes)]
            if card["actions"] is not None:
                actions = tuple(tuple(int(n) for n in vector) for vector in card["actions"])
                checked = actions
            for vector in checked:
                if len(vector) != len(sizes) or not all(
                    0 <= value < size for value, size in zip(vector, sizes, strict=True)
                ):
                    raise ValueError(f"{vector} is no action of {sizes}")
            network = _network(learner, sizes, actions)
            network.load_state_dict(load(weights))
        except OSError as error:
            raise UserError(
                f"expected a policy in {folder}, found no readable file ({error.strerror}); "
                "give the folder that it was saved in"
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
                f"expected a policy in {folder}, found something else ({error!r:.200}); "
                "train it anew"
            ) from None
        return Policy(learner=learner, sizes=sizes, actions=actions, network=network)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Trained policy and the cost of its training.

    Attributes:
        policy: Policy, an agent.
        decisions: Number of decisions that it has learned from.
        returns: Returns of the episodes that have ended, in their order, in nats.
        flops: FLOPs by purpose. `model` is an estimate for the training of the policy and the calls
            of the world model. `verify` and `evaluate` are the steps and the validations of real
            runs, which are all wasted.
        stopped: True if the training was stopped before its end.
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
        model: World model.
        histories: Histories of runs, which episodes start from.
        config: Configuration of these runs.
        learner: Learner; None for `PPO()`.
        divergence: Treatment of divergence, see `WorldModelEnv`. Its expected cost is less noisy
            and several times faster to learn from than random divergence.
        reach: Number of decisions of an episode, see `WorldModelEnv`. Beyond four decisions the
            model's value is more reliable than its rewards.
        flops: Largest cost in FLOPs; training ends before the decision that could exceed it.
        flops_per_state: FLOPs of the model for each state of a call; None for 2 for each weight of
            its networks.
        stop: Function to call after each decision; True stops the training.
    """
    stable_baselines3()
    from trainenv.agents.rl.env_views import ImaginedEpisodes

    learner = learner or PPO()
    env = WorldModelEnv(model, histories, config, divergence=divergence, reach=reach)
    view, actions = _view(learner, env.codec)
    each = flops_per_state
    if each is None:
        each = flops_of(model)
    # States that the model is called for, from one decision of all episodes to the next.
    asked = learner.episodes
    if divergence != "expected":
        asked *= 2

    def spent(made: Any) -> float:
        return learner.flops(made) + env.futures * each

    with contained():
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
    """Train a policy in a `TrainingEnv`, one real run after another; the runs are thrown away.

    Args:
        config: Configuration of the runs, which should be short.
        learner: Learner; None for `PPO(sees=FEATURES)` with short rollouts.
        flops: Largest cost of the runs in FLOPs; training ends before the decision that could
            exceed it.
        stop: Function to call after each decision; True stops the training.
    """
    stable_baselines3()
    from trainenv.agents.rl.env_views import Viewed

    learner = learner or PPO(sees=FEATURES, rollout=16, batch=16)
    env = TrainingEnv(config)
    view, actions = _view(learner, env.codec)
    with contained():
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
    """Estimate the FLOPs of a model's call for one state.

    It is 2 for each weight of its `networks`, and 0 without any. An inference uses some of the
    networks and a forecast uses them several times, so this is the order of magnitude.
    """
    networks = getattr(model, "networks", None)
    if networks is None:
        return 0.0
    return 2.0 * float(sum(parameter.numel() for parameter in networks.parameters()))


def _learn(learner: Learner, env: Any, stop: Callable[[Any], bool]) -> tuple[Any, bool]:
    """Train, and return the learner of Stable-Baselines3, and True if it was stopped.

    Args:
        learner: Hyperparameters.
        env: Environment.
        stop: Function to call with the learner after each decision; True stops the training.
    """
    made = learner.learner(env)
    stopped = False

    def continues(_: Any, __: Any) -> bool:
        nonlocal stopped
        stopped = stop(made)
        return not stopped

    made.learn(learner.decisions, callback=continues)
    made.policy.set_training_mode(False)
    return made, stopped


def _view(learner: Learner, codec: ActionCodec) -> tuple[Any, tuple[tuple[int, ...], ...] | None]:
    """Return a learner's view of an environment, and the action vectors that it chooses from."""
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
    """Return the untrained network of a policy."""
    stable_baselines3()
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.dqn.policies import DQNPolicy

    observations = spaces.Box(-BOUND, BOUND, (len(FEATURES),), np.float32)
    layers = [learner.width, learner.width]
    with contained():
        if actions is None:
            kind: Any = ActorCriticPolicy
            if isinstance(learner, MaskablePPO):
                sb3_contrib()
                from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

                kind = MaskableActorCriticPolicy
            made: Any = kind(
                observations, spaces.MultiDiscrete(list(sizes)), lambda _: 0.0, net_arch=layers
            )
        else:
            made = DQNPolicy(
                observations, spaces.Discrete(len(actions)), lambda _: 0.0, net_arch=layers
            )
    made.set_training_mode(False)
    return made
