"""Where imagined episodes start, and what is known of them without a model: schedule, multipliers, masks, observation."""

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
    "progress", "budget_left", "lr", "lr_scale", "weight_decay_scale", *(f"clip_{name}" for name in CLIP_NAMES),
    "reset_recency", "flagged",
)  # fmt: skip
"""Features of the observation that follow from the interventions and the schedule alone."""
FORECAST = ("validation", "validation_fall")
"""Features that follow from a model's rewards."""
LEAST_STEPS = 16
"""Of telemetry: what the shipped world model needs."""
_MOVING = np.array([FEATURES.index(name) for name in (*KNOWN, *FORECAST)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Root:
    """A real run at the moment from which its future is imagined.

    Attributes:
        history: as it was recorded.
        observation: what `TrainingEnv` would have shown; `validation_fall` is 0, for a history does
            not tell the loss before.
        validation: clean validation loss, nats per token; where the history has none, that of the
            clean probe over the last decision, else the training loss.
        rates: [R] learning rate of each step ahead at a multiplier of 1, without the warm-up after
            a momentum reset.
        horizon: of the budget, in steps; progress follows from it.
        reset_at: step of the last momentum reset, None without one.
        reset_warmup: steps over which the learning rate warms up after one.
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
        """The root that a history makes.

        Raises:
            UserError: the history has no telemetry or no learning rates ahead.
        """
        if not history.telemetry or not history.lrs_ahead:
            raise UserError(
                f"a root needs telemetry and learning rates ahead, found {len(history.telemetry)} and {len(history.lrs_ahead)}; "
                "record histories with record_histories or history_of"
            )
        last = history.telemetry[-1]
        steps = history.decision_steps
        window = history.telemetry[-steps:]
        earlier = history.telemetry[-2 * steps : -steps]
        end = last.step + len(history.lrs_ahead)
        # Until the warm-up is over, annealing has not begun.
        since = (
            last.step - 1
            if last.progress > 0
            else max(last.step - 1, min(config.schedule.warmup, end))
        )
        reset_at = last.step - last.steps_since_reset if last.steps_since_reset >= 0 else None
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
        """Steps completed."""
        return self.history.telemetry[-1].step

    def start(self) -> Imagined:
        """The run as it is here."""
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
    """A run as it is imagined some decisions after its root: a value, and what action masks depend on.

    Attributes:
        root: where it started.
        taken: the intervention of each decision since.
        lr_scale, weight_decay_scale, clip: in force.
        flagged_ahead: one number for each flagged data index still to come. When they come is not
            known at a root, so they stay until they are skipped.
        reset_at: step of the last momentum reset.
        validation: loss, nats per token.
        fall: of its logarithm over the last decision.
        over: the episode has ended.
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
        """Optimizer steps that would be completed."""
        return min(
            self.root.step + len(self.taken) * self.root.history.decision_steps,
            self.root.horizon.end,
        )

    @property
    def observation(self) -> Observation:
        """The root's, with `KNOWN` and `FORECAST` as they are now."""
        seen = self.root.observation.copy()
        if self.taken:
            seen[_MOVING] = np.clip(self._moving(), -BOUND, BOUND)
        return seen

    def _moving(self) -> list[float]:
        root = self.root
        step = self.step
        last = self.step - 1
        lr = (
            root.rates[last - root.step]
            * self.lr_scale
            * schedules.warmth(last, self.reset_at, root.reset_warmup)
        )
        return [
            root.horizon.progress(last),
            1 - step / root.horizon.end,
            math.log(lr / root.history.base_lr) if lr > 0 else -math.inf,
            math.log(self.lr_scale),
            math.log(self.weight_decay_scale),
            *(float(self.clip == name) for name in CLIP_NAMES),
            0.0
            if self.reset_at is None
            else math.exp((self.reset_at - step) / root.history.decision_steps),
            float(bool(self.flagged_ahead)),
            math.log(self.validation / root.history.uniform_loss),
            10 * self.fall,
        ]


def record_histories(
    config: RunConfig, *, runs: int = 1, seed: int = 0, every: int | None = None
) -> tuple[list[RunHistory], float]:
    """Histories of runs that nobody steers, to start imagined episodes from; and the FLOPs that the runs cost.

    Args:
        config: of the runs; make it short and small. Their decisions are
            `environment.decision_steps` long, best 3 % of the budget: those that the shipped world
            model has learned from.
        runs: how many; their seeds are `seed`, `seed + 1`, …
        seed: of the first run.
        every: steps from one history to the next; a decision's if left out. None is taken before 16
            steps, nor at a step whose loss or gradient is not finite.
    """
    decision = config.environment.decision_steps
    every = decision if every is None else every
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
    """The clean validation loss, or what comes nearest to it."""
    for losses in ([history.validation], [t.probe_loss for t in window], [t.loss for t in window]):
        if math.isfinite(loss := _geometric_mean(losses)):
            return loss
    return history.uniform_loss


def _geometric_mean(values: Sequence[float]) -> float:
    """Of the positive finite values; NaN where there is none."""
    logs = [math.log(value) for value in values if 0 < value < math.inf]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
