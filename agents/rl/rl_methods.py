"""Methods of a comparison: runs that a policy of PPO or DQN steers, at the cost of one run.

    ppo_model(config, folder, watch, stop, model=worldmodel.load_pretrained())

| name | the policy is trained |
|---|---|
| `…_model` | in the world model, after the first tenth of the run, then repeatedly |
| `ppo_real` | on short real runs, for half of the budget, before the run starts |

The cost of training the policy is taken off the run's budget at once, so that the learning rate
anneals in fewer steps. In the world model the policy is trained again and again from the newest
states, because the model can be trusted for four decisions only: a policy trained on the first
tenth alone steers the run worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainenv.agents.agent_callback import AgentCallback
from trainenv.agents.rl.learners import DQN, PPO, SEEDS, Learner, MaskablePPO
from trainenv.agents.rl.policy import Trained, train_in_model, train_in_run
from trainenv.agents.waste_budget import ComputeDebt
from trainenv.config.schema import RunConfig
from trainenv.envs.imagined_run import LEAST_STEPS
from trainenv.envs.observation import FEATURES
from trainenv.loop import Callback, CallbackResult, Watch, train
from trainenv.records.run_folder import RunFolder
from trainenv.run import make_run
from trainenv.training.history import history_of
from trainenv.types import DECISIONS, PURPOSES, Run, RunHistory, Telemetry, WorldModel

# Shares of the budget: length of a decision, as the world model has learned it; steps before the
# first training in the world model; steps from one training to the next; cost of a training.
DECISION_SHARE = 0.03
WATCHED_SHARE = 0.1
AGAIN_SHARE = 0.15
TRAINING_SHARE = 0.02
ROOTS = 16  # newest histories that a training starts from
# A real episode is this many times shorter than the run, so that half of the budget makes eight.
SHORTER = 16
_LOOKED_AT = 512, 40  # steps and decisions of telemetry kept, the larger of both: see `RunHistory`
_POLICY = "policy"

Stop = Callable[[], bool]


def ppo_model(
    config: RunConfig, folder: Path, watch: Watch, stop: Stop, /, *, model: WorldModel
) -> dict[str, Any]:
    """Train a run that a PPO policy from the world model steers, and return the summary."""
    return _in_model(
        config, folder, watch, stop, model, PPO(decisions=6000, seed=config.seed % SEEDS)
    )


def maskable_ppo_model(
    config: RunConfig, folder: Path, watch: Watch, stop: Stop, /, *, model: WorldModel
) -> dict[str, Any]:
    """Train a run that a MaskablePPO policy from the world model steers, and return the summary."""
    learner = MaskablePPO(decisions=6000, seed=config.seed % SEEDS)
    return _in_model(config, folder, watch, stop, model, learner)


def dqn_model(
    config: RunConfig, folder: Path, watch: Watch, stop: Stop, /, *, model: WorldModel
) -> dict[str, Any]:
    """Train a run that a DQN policy from the world model steers, and return the summary."""
    return _in_model(
        config, folder, watch, stop, model, DQN(decisions=3000, seed=config.seed % SEEDS)
    )


def ppo_real(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Train a run that a PPO policy from real runs steers, and return the summary."""
    config = _steered(config)
    run = make_run(config)
    recorded = RunFolder.create(folder, config)
    learner = PPO(sees=FEATURES, rollout=16, batch=16, seed=config.seed % SEEDS)
    half = run.flops_ahead * config.steps / 2
    trained = train_in_run(shortened(config, SHORTER), learner, flops=half, stop=stop)
    trained.policy.save(folder / _POLICY)
    _pay(run, trained)
    return train(
        run,
        recorded,
        callback=AgentCallback(agent=trained.policy, pays=True),
        watch=watch,
        stop=stop,
    )


def shortened(config: RunConfig, times: int) -> RunConfig:
    """Return the configuration of a shorter run, with decisions and warm-up shortened alike.

    Planted stressors move in proportion as well. The validation set is smaller by the same factor,
    but has at least 4 sequences, because it is measured as often.

    Args:
        config: Configuration of the run.
        times: Factor by which the run is shorter.
    """
    steps = max(1, config.steps // times)

    def scaled(count: int) -> int:
        return round(count * steps / config.steps)

    plants = [
        plant.model_copy(update={"at": scaled(plant.at), "steps": max(1, scaled(plant.steps))})
        for plant in config.stressors.planted
    ]
    return RunConfig.load(
        config,
        {
            "steps": steps,
            "reset_warmup": scaled(config.reset_warmup),
            "schedule.warmup": scaled(config.schedule.warmup),
            "stressors.harsh_warmup_steps": scaled(config.stressors.harsh_warmup_steps),
            "stressors.planted": tuple(plant.model_dump() for plant in plants),
            "environment.decision_steps": max(1, scaled(config.environment.decision_steps)),
            "validation.sequences": min(
                config.validation.sequences, max(4, config.validation.sequences // times)
            ),
        },
    )


@dataclass(kw_only=True)
class Apprentice(Callback):
    """Callback that trains a policy from the histories of the run, and lets it steer.

    Args:
        train: Function that takes histories and returns a trained policy.
        until: Step after which it trains, once there is a history.
        again: Steps from one training to the next; there is none in the last steps of this number.
        acting: Callback of the policy; None before the first training.
    """

    train: Callable[[Sequence[RunHistory]], Trained]
    until: int
    again: int
    acting: AgentCallback | None = None
    _telemetry: list[Telemetry] = field(default_factory=list, init=False, repr=False)
    _histories: list[RunHistory] = field(default_factory=list, init=False, repr=False)

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Train if it is due, and let the policy act if there is one. See `Callback`."""
        sound = bool(np.isfinite([window[-1].loss, window[-1].grad_norm]).all())
        if run.done or not sound:
            return CallbackResult()
        decision = run.config.environment.decision_steps
        first = self.acting is None
        self._watch(run, window, decision)
        if (
            run.step >= self.until
            and self._histories
            and (first or run.horizon.end - run.step > self.again)
        ):
            self.until = run.step + self.again
            trained = self.train(self._histories)
            _pay(run, trained)
            if self.acting is None:
                self.acting = AgentCallback(agent=trained.policy, pays=True)
            self.acting.agent = trained.policy
        if self.acting is None:
            return CallbackResult()
        if first:  # of the steps before, the policy sees those of one decision
            window = self._telemetry[-decision:]
        return self.acting.on_block_end(run, window)

    def _watch(self, run: Run, window: Sequence[Telemetry], decision: int) -> None:
        """Keep the telemetry that a history needs, and the newest histories."""
        self._telemetry = [*self._telemetry, *window][
            -max(_LOOKED_AT[0], _LOOKED_AT[1] * decision) :
        ]
        if len(self._telemetry) >= LEAST_STEPS:
            history = history_of(run, tuple(self._telemetry), horizon=DECISIONS * decision)
            self._histories = [*self._histories, history][-ROOTS:]


def _in_model(
    config: RunConfig, folder: Path, watch: Watch, stop: Stop, model: WorldModel, learner: Learner
) -> dict[str, Any]:
    config = _steered(config)
    run = make_run(config)
    recorded = RunFolder.create(folder, config)

    def train_policy(histories: Sequence[RunHistory]) -> Trained:
        limit = TRAINING_SHARE * config.steps * run.flops_ahead
        trained = train_in_model(model, histories, config, learner, flops=limit, stop=stop)
        trained.policy.save(folder / _POLICY)
        return trained

    until = round(WATCHED_SHARE * config.steps)
    again = max(1, round(AGAIN_SHARE * config.steps))
    callback = Apprentice(train=train_policy, until=until, again=again)
    return train(run, recorded, callback=callback, watch=watch, stop=stop)


def _steered(config: RunConfig) -> RunConfig:
    """Return the configuration with decisions of the length that the world model knows."""
    return RunConfig.load(
        config, {"environment.decision_steps": max(1, round(DECISION_SHARE * config.steps))}
    )


def _pay(run: Run, trained: Trained) -> None:
    """Charge the training of a policy to the run, and take it off the budget."""
    for purpose in PURPOSES:
        run.ledger.charge(purpose, trained.flops.get(purpose, 0.0))
    run.spend(ComputeDebt().settle(run, sum(trained.flops.values())))
