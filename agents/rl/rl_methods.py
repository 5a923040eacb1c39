"""Runs that a policy of PPO or DQN steers, at the compute of the run left alone: methods of a comparison.

    ppo_model(config, folder, watch, stop, model=worldmodel.load_pretrained())

| name | the policy is trained |
|---|---|
| `ppo_model`, `dqn_model` | in the world model, once the run's first tenth is done, and anew as it goes on |
| `ppo_real` | on short real runs, for half of the budget, before the run starts |

What training the policy costs comes off the run's budget at once: what is left of the annealing is
as much faster. In the world model it is trained anew with the newest states as roots, since the
model is to be trusted for four decisions only: what was learned from the first tenth alone says
little of what the run becomes, and steers it worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainenv.agents.agent_callback import AgentCallback
from trainenv.agents.rl.learners import DQN, PPO, SEEDS, Learner
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

DECISION_SHARE = (
    0.03  # of the budget, from one decision to the next: what the world model has learned from
)
WATCHED_SHARE = 0.1  # of the budget, before a policy is trained in the world model
AGAIN_SHARE = 0.15  # of the budget, from one such training to the next
TRAINING_SHARE = 0.02  # of the budget: what one of them may cost
ROOTS = 16  # the newest histories, that a training starts from
# times, than the budget: a real episode to learn from; so half of the budget makes about eight
SHORTER = 16
_LOOKED_AT = 512, 40  # steps and decisions of telemetry, the more of the two: see `RunHistory`
_POLICY = "policy"

Stop = Callable[[], bool]


def ppo_model(
    config: RunConfig, folder: Path, watch: Watch, stop: Stop, /, *, model: WorldModel
) -> dict[str, Any]:
    """PPO, trained in the world model, again and again.

    See the module; returns the summary as `train` does.
    """
    return _in_model(
        config, folder, watch, stop, model, PPO(decisions=6000, seed=config.seed % SEEDS)
    )


def dqn_model(
    config: RunConfig, folder: Path, watch: Watch, stop: Stop, /, *, model: WorldModel
) -> dict[str, Any]:
    """DQN, trained in the world model, again and again.

    See the module; returns the summary as `train` does.
    """
    return _in_model(
        config, folder, watch, stop, model, DQN(decisions=3000, seed=config.seed % SEEDS)
    )


def ppo_real(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """PPO, trained on real runs. See the module; returns the summary as `train` does."""
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
    """A run so many times as short that goes the same way: as many decisions, warm-ups and planted faults in its own time.

    Its validation set is as much smaller (but not below 4 sequences), for it is measured as often.
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
    """Watches the first steps of a run, trains a policy on what a world model makes of them, lets it steer, and trains anew.

    Args:
        train: histories → a trained policy.
        until: step after which it trains: at the end of a block of telemetry, and where there is a
            history to start from.
        again: steps from one training to the next; near the end, within so many steps, there is
            none any more.
    """

    train: Callable[[Sequence[RunHistory]], Trained]
    until: int
    again: int
    acting: AgentCallback | None = None
    _telemetry: list[Telemetry] = field(default_factory=list, init=False, repr=False)
    _histories: list[RunHistory] = field(default_factory=list, init=False, repr=False)

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Watch, train if it is time to, and let the policy act if there is one."""
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
        # Of the steps before there was a policy, it is shown those of one decision.
        return self.acting.on_block_end(run, self._telemetry[-decision:] if first else window)

    def _watch(self, run: Run, window: Sequence[Telemetry], decision: int) -> None:
        """Keep what a history needs, and the newest histories."""
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
    """The same run, with decisions as long as the world model knows them."""
    return RunConfig.load(
        config, {"environment.decision_steps": max(1, round(DECISION_SHARE * config.steps))}
    )


def _pay(run: Run, trained: Trained) -> None:
    """Charge a policy's training to the run, and take as much off its budget."""
    for purpose in PURPOSES:
        run.ledger.charge(purpose, trained.flops.get(purpose, 0.0))
    run.spend(ComputeDebt().settle(run, sum(trained.flops.values())))
