"""An agent as a callback of `trainenv.train`: with records, checkpoints and resumes.

    train(run, folder, callback=AgentCallback(agent=MyAgent()))

At each decision the agent gets the observation that `trainenv.envs.training.TrainingEnv` would give
it over the same run, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trainenv.agents.contract import Agent
from trainenv.agents.waste_budget import ComputeDebt
from trainenv.checkpoints.store import CheckpointStore
from trainenv.envs.observer import Observer
from trainenv.interventions import ActionCodec
from trainenv.loop import Callback, CallbackResult
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import telemetry_of
from trainenv.types import Event, Run, Telemetry, UserError
from trainenv.verification.record import changes


@dataclass(kw_only=True)
class AgentCallback(Callback):
    """Callback that lets an agent steer a run.

    The agent decides before the first step, and then at each multiple of
    `environment.decision_steps`, or where the block of telemetry with that step ends. The
    validation of each decision is charged to *evaluate*.

    Args:
        agent: Agent; it may have a state, see `agents.Agent`.
        pays: True to take these validations off the run's budget, in whole steps, for comparisons
            at equal compute. The learning rate then anneals in fewer steps.

    Raises:
        UserError: The agent has no method `act`.
    """

    agent: Agent
    pays: bool = False
    _observer: Observer = field(default_factory=Observer, init=False, repr=False)
    _masked: tuple[str, ...] = field(default=(), init=False, repr=False)
    _window: list[Telemetry] = field(default_factory=list, init=False, repr=False)
    _debt: ComputeDebt = field(default_factory=ComputeDebt, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.agent, Agent):
            raise UserError(
                f"an agent needs a method act(observation, info), found {self.agent!r:.200}"
            )

    def on_train_begin(self, run: Run, folder: RunFolder, store: CheckpointStore, /) -> None:
        """Take the decision before the first step, which a resumed run has had. See `Callback`."""
        if math.isnan(self._observer.validation) and not run.done:
            for event in self._decide(run):
                folder.event(event)

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Decide if the steps of a decision are over. See `Callback`."""
        every = run.config.environment.decision_steps
        self._window += window
        before = self._window[0].step - 1
        if run.done or run.diverged or run.step // every == before // every:
            return CallbackResult()
        return CallbackResult(events=self._decide(run))

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the agent's if it has one. See `Callback`."""
        observer = self._observer
        losses = (observer.validation, observer.validation_before, observer.gradient_before)
        state = {
            "losses": [repr(value) for value in (*losses, self._debt.owed)],
            "masked": list(self._masked),
            "window": [_written(telemetry) for telemetry in self._window],
        }
        agent_state = getattr(self.agent, "state_dict", None)
        return state if agent_state is None else state | {"agent": agent_state()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take on the state that `state_dict` returned. See `Callback`."""
        if not state:  # the run had another callback, or none
            return
        validation, before, gradient, owed = (float(value) for value in state["losses"])
        self._observer = Observer(
            validation=validation, validation_before=before, gradient_before=gradient
        )
        self._masked = tuple(state["masked"])
        self._window = telemetry_of(values | values["reading"] for values in state["window"])
        self._debt = ComputeDebt(owed)
        if "agent" in state:
            self.agent.load_state_dict(state["agent"])  # type: ignore[attr-defined]

    def _decide(self, run: Run) -> list[Event]:
        """Let the agent decide, and return the event of its intervention."""
        loss = math.nan
        if not run.diverged:
            loss = run.evaluate()
            if self.pays:
                run.spend(self._debt.settle(run, run.flops_per_evaluation))
        observer = self._observer.evaluated(run, loss)
        observation = observer.observe(run, self._window)
        info = observer.info(run, self._window, self._masked)
        self._observer = observer.after_decision(self._window)
        self._window = []
        if run.done:  # the validation has taken the rest of the budget
            return []
        codec = ActionCodec(run.config.interventions)
        info["action_masks"] = np.concatenate(codec.masks(run))
        intervention, self._masked = codec.legal(self.agent.act(observation, info), run)
        run.apply(intervention)
        if intervention.does_nothing:
            return []
        return [Event(run.step, "intervention", changes(intervention))]


def _written(telemetry: Telemetry) -> dict[str, Any]:
    """Return a step as JSON values; non-finite numbers are words."""
    values = asdict(telemetry)
    return {name: _worded(value) for name, value in values.items()} | {
        part: {name: _worded(value) for name, value in values[part].items()}
        for part in ("reading", "objective")
    }


def _worded(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
