"""Imagined runs: their start in a recorded history, and all that follows without a model.

That is the schedule, the multipliers in force, the action masks and part of the observation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainenv.config.schema import RunConfig, TrainingConfig
from trainenv.envs.observation import BOUND, FEATURES, Situation, observe
from trainenv.envs.spaces import Observation
from trainenv.run import TrainingRun
from trainenv.training import schedules
from trainenv.training.history import history_of
from trainenv.types import CLIP_NAMES, DECISIONS, Intervention, RunHistory, Telemetry, UserError

KNOWN = (
    "progress",
    "budget_left",
    "lr",
    "lr_scale",
    "weight_decay_scale",
    *(f"clip_{name}" for name in CLIP_NAMES),
    "reset_recency",
    "flagged",
)
"""Features of an observation that follow from the interventions and the schedule alone."""
FORECAST = ("validation", "validation_fall")
"""Features of an observation that follow from the rewards of a model."""
LEAST_STEPS = 16
"""Steps of telemetry that the shipped world model needs."""
_MOVING = np.array([FEATURES.index(name) for name in (*KNOWN, *FORECAST)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Root:
    """A real run at the step from which its future is imagined.

    Attributes:
        history: Recorded history of the run.
        observation: Observation that `TrainingEnv` would have returned, float32 [32].
            `validation_fall` is 0, since a history does not have the loss one decision ago.
        validation: Clean validation loss, nats per token. If the history has none, the loss on the
            clean probe over the last decision, else the training loss.
        rates: Learning rate of each step ahead, [R], at a multiplier of 1 and without the warm-up
            after a momentum reset.
        horizon: Budget in steps; progress follows from it.
        reset_at: Step of the last momentum reset; None without one.
        reset_warmup: Steps of the warm-up after a momentum reset.
    """

    history: RunHistory = field(repr=False)
    observation: Observation = field(repr=False)
    validation: float
    rates: NDArray[np.float64] = field(repr=False)
    horizon: schedules.Horizon
    reset_at: int | None
    reset_warmup: int

    @staticmethod
    def of(history: RunHistory, config: TrainingConfig) -> Root:
        """Make the root of a history.

        Args:
            history: Recorded history of a run.
            config: Configuration of that run.

        Raises:
            UserError: The history has no telemetry or no learning rates ahead.
        """
        if not history.telemetry or not history.lrs_ahead:
            raise UserError(
                f"a root needs telemetry and learning rates ahead, "
                f"found {len(history.telemetry)} and {len(history.lrs_ahead)}; "
                "record histories with record_histories or history_of"
            )
        last = history.telemetry[-1]
        steps = history.decision_steps
        window = history.telemetry[-steps:]
        earlier = history.telemetry[-2 * steps : -steps]
        end = last.step + len(history.lrs_ahead)
        since = last.step - 1
        if last.progress <= 0:  # annealing begins after the warm-up
            since = max(since, min(config.schedule.warmup, end))
        reset_at = None
        if last.steps_since_reset >= 0:
            reset_at = last.step - last.steps_since_reset
        in_force = [
            last.lr_scale * schedules.warmth(last.step + ahead, reset_at, config.reset_warmup)
            for ahead in range(len(history.lrs_ahead))
        ]
        validation = _validation(history, window)
        now = Situation(
            reference=history.uniform_loss,
            base_lr=history.base_lr,
            decision_steps=steps,
            budget_left=1 - last.step / end,
            validation=validation,
            validation_before=validation,
            gradient_before=_geometric_mean([t.grad_norm for t in earlier]),
            flagged=history.flagged_ahead > 0,
        )
        return Root(
            history=history,
            observation=observe(window, now).vector(),
            validation=validation,
            rates=np.asarray(history.lrs_ahead, dtype=np.float64) / in_force,
            horizon=schedules.Horizon(end=end, since=since, done=last.progress),
            reset_at=reset_at,
            reset_warmup=config.reset_warmup,
        )

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return self.history.telemetry[-1].step

    def start(self) -> Imagined:
        """Return an imagined run at this root."""
        last = self.history.telemetry[-1]
        return Imagined(
            root=self,
            lr_scale=last.lr_scale,
            weight_decay_scale=last.weight_decay_scale,
            clip=last.clip,
            flagged_ahead=tuple(range(self.history.flagged_ahead)),
            reset_at=self.reset_at,
            validation=self.validation,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Imagined:
    """A run as imagined some decisions after its root. It is a value; action masks depend on it.

    Attributes:
        root: Root that the run started from.
        taken: Intervention of each decision since the root.
        lr_scale: Multiplier on the learning rate in force.
        weight_decay_scale: Multiplier on the weight decay in force.
        clip: Name of the clip policy in force.
        flagged_ahead: One number for each flagged data index still to come. A root does not know
            when they come, so they stay until they are skipped.
        reset_at: Step of the last momentum reset; None without one.
        validation: Validation loss, nats per token.
        fall: Fall of ln(validation loss) over the last decision, nats.
        over: True once the episode has ended.
    """

    root: Root
    taken: tuple[Intervention, ...] = ()
    lr_scale: float
    weight_decay_scale: float
    clip: str
    flagged_ahead: tuple[int, ...]
    reset_at: int | None
    validation: float
    fall: float = 0.0
    over: bool = False

    @property
    def step(self) -> int:
        """Completed optimizer steps, those of the imagined decisions included."""
        return min(
            self.root.step + len(self.taken) * self.root.history.decision_steps,
            self.root.horizon.end,
        )

    @property
    def observation(self) -> Observation:
        """Observation of the root, with the features `KNOWN` and `FORECAST` as they are now."""
        seen = self.root.observation.copy()
        if self.taken:
            seen[_MOVING] = np.clip(self._moving(), -BOUND, BOUND)
        return seen

    def _moving(self) -> list[float]:
        """Return the features `KNOWN` and `FORECAST`, in order."""
        root = self.root
        step = self.step
        last = self.step - 1
        lr = (
            root.rates[last - root.step]
            * self.lr_scale
            * schedules.warmth(last, self.reset_at, root.reset_warmup)
        )
        log_lr = -math.inf
        if lr > 0:
            log_lr = math.log(lr / root.history.base_lr)
        recency = 0.0
        if self.reset_at is not None:
            recency = math.exp((self.reset_at - step) / root.history.decision_steps)
        return [
            root.horizon.progress(last),
            1 - step / root.horizon.end,
            log_lr,
            math.log(self.lr_scale),
            math.log(self.weight_decay_scale),
            *(float(self.clip == name) for name in CLIP_NAMES),
            recency,
            float(bool(self.flagged_ahead)),
            math.log(self.validation / root.history.uniform_loss),
            10 * self.fall,
        ]


def record_histories(
    config: RunConfig, *, runs: int = 1, seed: int = 0, every: int | None = None
) -> tuple[list[RunHistory], float]:
    """Train runs without interventions, and record histories that imagined episodes start from.

    No history is recorded before 16 steps, nor at a step with a non-finite loss or gradient.

    Args:
        config: Configuration of the runs; take a short and small one. Decisions of 3 % of the
            budget (`environment.decision_steps`) are best: the shipped world model has learned from
            such.
        runs: Number of runs; their seeds are `seed`, `seed + 1`, …
        seed: Seed of the first run.
        every: Steps from one history to the next; those of a decision if left out.

    Returns:
        Histories, and the FLOPs that the runs took.

    Raises:
        UserError: `runs` or `every` is below 1.
    """
    decision = config.environment.decision_steps
    if every is None:
        every = decision
    if runs < 1 or every < 1:
        raise UserError(f"runs and every must be at least 1, found {runs} and {every}")
    histories = []
    flops = 0.0
    for number in range(runs):
        run = TrainingRun.from_config(config.model_copy(update={"seed": seed + number}))
        telemetry = list[Telemetry]()
        while not run.done:
            telemetry += run.advance(min(every, run.horizon.end - run.step))
            if run.diverged:
                break
            sound = math.isfinite(telemetry[-1].loss) and math.isfinite(telemetry[-1].grad_norm)
            if sound and run.step >= LEAST_STEPS and not run.done:
                horizon = DECISIONS * decision
                validation = run.evaluate()
                histories.append(
                    history_of(run, tuple(telemetry), horizon=horizon, validation=validation)
                )
        flops += run.ledger.total
    return histories, flops


def _validation(history: RunHistory, window: Sequence[Telemetry]) -> float:
    """Return the clean validation loss, or the nearest loss that was measured."""
    for losses in ([history.validation], [t.probe_loss for t in window], [t.loss for t in window]):
        if math.isfinite(loss := _geometric_mean(losses)):
            return loss
    return history.uniform_loss


def _geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of the positive finite values, NaN if there is none."""
    logs = [math.log(value) for value in values if 0 < value < math.inf]
    if not logs:
        return math.nan
    return math.exp(sum(logs) / len(logs))
