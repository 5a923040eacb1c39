"""An agent in a run that `trainenv.loop.train` drives: with records, checkpoints, and going on after a kill.

    train(run, folder, callback=AgentCallback(agent=MyAgent()))

At every decision it is shown what `trainenv.envs.training.TrainingEnv` would show it, bit for bit,
over the same run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trainenv.agents.contract import Agent, Observation
from trainenv.agents.waste_budget import ComputeDebt
from trainenv.checkpoints.store import CheckpointStore
from trainenv.envs.observation import Situation, observe
from trainenv.interventions import ActionCodec
from trainenv.loop import Callback, CallbackResult
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import telemetry_of
from trainenv.types import Event, Intervention, Run, Telemetry, UserError


@dataclass
class _Memory:
    """State kept between two decisions."""

    validation: float = math.nan
    before: float = math.nan
    gradient: float = math.nan  # of the window before
    masked: tuple[str, ...] = ()
    window: list[Telemetry] = field(default_factory=list)  # since the last decision


@dataclass(kw_only=True)
class AgentCallback(Callback):
    """Steers a run by an agent: it decides before the first step and then at each multiple of `environment.decision_steps`.

    Where a block of telemetry ends past such a step, it decides there. Each decision's validation
    is charged to *evaluate*.

    Args:
        agent: what decides; it may keep a state of its own, see `agents.Agent`.
        pays: take these validations off the run's budget, in whole steps; for comparisons at equal
            compute. Then the annealing is as much faster, and observations are those of a run that
            ends as early.

    Raises:
        UserError: what was given as an agent has no method `act`.
    """

    agent: Agent
    pays: bool = False
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False)
    _tab: ComputeDebt = field(default_factory=ComputeDebt, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.agent, Agent):
            raise UserError(
                f"an agent needs a method act(observation, info), found {self.agent!r:.200}"
            )

    def on_train_begin(self, run: Run, folder: RunFolder, store: CheckpointStore, /) -> None:
        """The decision before the first step.

        A run that goes on had it, and whatever came up to its last checkpoint.
        """
        if math.isnan(self._memory.validation) and not run.done:
            for event in self._decide(run):
                folder.event(event)

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Decide, if a decision's steps are over."""
        memory = self._memory
        every = run.config.environment.decision_steps
        memory.window += window
        before = memory.window[0].step - 1
        if run.done or run.diverged or run.step // every == before // every:
            return CallbackResult()
        return CallbackResult(events=self._decide(run))

    def state_dict(self) -> dict[str, Any]:
        """The memory, and the agent's own where it has one."""
        memory = self._memory
        state = {
            "losses": [
                repr(value)
                for value in (memory.validation, memory.before, memory.gradient, self._tab.owed)
            ],
            "masked": list(memory.masked),
            "window": [_written(telemetry) for telemetry in memory.window],
        }
        own = getattr(self.agent, "state_dict", None)
        return state if own is None else state | {"agent": own()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from there."""
        if not state:  # the run was interrupted under another callback, or under none
            return
        validation, before, gradient, owed = (float(value) for value in state["losses"])
        window = telemetry_of(values | values["reading"] for values in state["window"])
        self._memory = _Memory(validation, before, gradient, tuple(state["masked"]), window)
        self._tab = ComputeDebt(owed)
        if "agent" in state:
            self.agent.load_state_dict(state["agent"])  # type: ignore[attr-defined]

    def _decide(self, run: Run) -> list[Event]:
        memory = self._memory
        self._look(run)
        observation = self._observation(run)
        fired = sum(t.reading.fired for t in memory.window)
        memory.gradient = _mean_gradient(memory.window)
        memory.window = []
        if run.done:  # what was owed has taken the rest of the budget
            return []
        codec = ActionCodec(run.config.interventions)
        info = {
            "step": run.step,
            "validation_loss": memory.validation,
            "fired": fired,
            "masked": list(memory.masked),
            "flops": run.ledger.as_dict(),
            "action_masks": np.concatenate(codec.masks(run)),
        }
        intervention, memory.masked = codec.legal(self.agent.act(observation, info), run)
        run.apply(intervention)
        return (
            []
            if intervention.does_nothing
            else [Event(run.step, "intervention", different(intervention))]
        )

    def _look(self, run: Run) -> None:
        """Measure the validation loss; what is lost, or worse than the environment's bound, counts as that bound."""
        memory = self._memory
        measured = math.nan
        if not run.diverged:
            measured = run.evaluate()
            if self.pays:
                run.spend(self._tab.settle(run, run.flops_per_evaluation))
        cap = run.config.environment.divergence_loss * run.uniform_loss
        validation = min(measured, cap) if math.isfinite(measured) else cap
        memory.before = validation if math.isnan(memory.validation) else memory.validation
        memory.validation = validation

    def _observation(self, run: Run) -> Observation:
        memory = self._memory
        situation = Situation(
            reference=run.uniform_loss,
            base_lr=run.base_lr,
            decision_steps=run.config.environment.decision_steps,
            budget_left=max(0.0, 1 - run.step / max(1, run.horizon.end)),
            validation=memory.validation,
            validation_before=memory.before,
            gradient_before=memory.gradient,
            flagged=bool(run.flagged_ahead),
        )
        return observe(memory.window, situation).vector()


def different(intervention: Intervention) -> dict[str, Any]:
    """The fields of an intervention that differ from their defaults."""
    return {
        name: value
        for name, value in asdict(intervention).items()
        if value != getattr(Intervention(), name)
    }


def _mean_gradient(window: Sequence[Telemetry]) -> float:
    """The geometric mean of the gradient norms; NaN where there is none."""
    logs = [math.log(t.grad_norm) for t in window if 0 < t.grad_norm < math.inf]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def _written(telemetry: Telemetry) -> dict[str, Any]:
    """A step as JSON values; numbers that are not finite as words."""
    values = asdict(telemetry)
    return {name: _worded(value) for name, value in values.items()} | {
        "reading": {name: _worded(value) for name, value in values["reading"].items()}
    }


def _worded(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
