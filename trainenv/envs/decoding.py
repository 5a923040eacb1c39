"""An environment in which an agent sets the thresholds of speculative decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from trainenv.config.decoding_environment import DecodingEnvConfig
from trainenv.config.section import validate
from trainenv.decoding.clocks import CONTEXT, Clock, CostClock, TracedTask
from trainenv.decoding.contract import FALLBACK_RANGE, Settings, rollback_range
from trainenv.decoding.traces import CostModel, Score, SyntheticPair, synthetic_trace
from trainenv.envs.spaces import NoSuchRenderMode, episode_over
from trainenv.tools.checks import number, whole
from trainenv.types import UserError

Vector = NDArray[np.float32]
_OPTIONS = ("task", "fallback_threshold", "rollback_threshold")


class DecodingEnv(gym.Env[Vector, Vector]):
    """Set the two thresholds of speculative decoding.

    **Action** — `Box(-1, 1, (2,), float32)`: changes of the fallback and of the rollback threshold,
    multiplied by `fallback_step` and `rollback_step`, which are shares of the thresholds' ranges.
    The ranges are [0.05, 0.95] and [1, K] nats.

    **Observation** — `Box(0, 1, (2,), float32)`: both thresholds as shares of their ranges. With
    `context: true` it has 8 values; the others are those of `trainenv.decoding.clocks.CONTEXT`.

    **Reward** — float: speed-up over the target alone, acceptance and shaping, less the distance to
    the target, each multiplied by its weight in `reward`. `info["terms"]` has each product.

    **Termination** — never. **Truncation** — after `decisions` steps.

    **Reset** — a task and thresholds at random, from `seed`; or those in `options`: `task` (index),
    `fallback_threshold`, `rollback_threshold`.

    Args:
        tasks: Model pairs on corpora; by default three synthetic pairs.
        config: Configuration, or its values by key.
        clock: Source of scores. By default it is the cost model, which repeats bit for bit.
        render_mode: None; nothing is rendered.

    Attributes:
        tasks: Model pairs on corpora.
        config: Configuration.

    Raises:
        UserError: There is no task, or a trace is not as deep as K.
        NoSuchRenderMode: A render mode is given.
    """

    def __init__(
        self,
        tasks: Sequence[TracedTask] | None = None,
        config: DecodingEnvConfig | Mapping[str, Any] | None = None,
        clock: Clock | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            raise NoSuchRenderMode(
                f"there is nothing to render: render_mode must be None, found {render_mode!r}; "
                "leave it out"
            )
        self.render_mode = render_mode
        if not isinstance(config, DecodingEnvConfig):
            config = validate(DecodingEnvConfig, config or {}, "trainenv/Decoding-v0")
        self.config = config
        self.tasks = tuple(synthetic_tasks() if tasks is None else tasks)
        self._clock = clock or CostClock()
        if not self.tasks:
            raise UserError("tasks must have at least one task, found none; give one")
        for task in self.tasks:
            if task.trace.depth < config.k:
                raise UserError(
                    f"k must be at most the depth of each trace, found {config.k} and a depth of "
                    f"{task.trace.depth} in {task.name}; give a smaller k, or record a deeper trace"
                )
        size = 2
        if config.context:
            size += len(CONTEXT)
        self.observation_space = spaces.Box(0, 1, (size,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self._task = 0
        self._decisions = config.decisions
        self._point = np.full(2, 0.5)

    @property
    def task(self) -> TracedTask:
        """The task of the episode."""
        return self.tasks[self._task]

    @property
    def settings(self) -> Settings:
        """The settings now."""
        low, high = self._ranges()
        fallback, rollback = low + self._point * (high - low)
        return Settings(
            fallback_threshold=float(fallback),
            rollback_threshold=float(rollback),
            k=self.config.k,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Vector, dict[str, Any]]:
        super().reset(seed=seed)
        given = options or {}
        if unknown := set(given) - set(_OPTIONS):
            raise UserError(
                f"reset knows the options {', '.join(_OPTIONS)}, found "
                f"{', '.join(sorted(unknown))}; leave it out"
            )
        # Drawn whether they are used or not, so that an option does not shift the other.
        task = int(self.np_random.integers(len(self.tasks)))
        point = self.np_random.random(2)
        self._task = task
        if "task" in given:
            self._task = whole("task", given["task"], least=0)
            if self._task >= len(self.tasks):
                raise UserError(
                    f"task must be below the number of tasks, {len(self.tasks)}, found "
                    f"{self._task}; give another"
                )
        low, high = self._ranges()
        for place, name in enumerate(_OPTIONS[1:]):
            if name in given:
                value = number(name, given[name], least=low[place], most=high[place])
                point[place] = (value - low[place]) / (high[place] - low[place])
        self._point = point
        self._decisions = 0
        return self._observation(), self._info()

    def step(self, action: Vector) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        if self._decisions >= self.config.decisions:
            raise episode_over()
        steps = (self.config.fallback_step, self.config.rollback_step)
        change = np.nan_to_num(np.asarray(action, np.float64), nan=0.0, posinf=1.0, neginf=-1.0)
        self._point = np.clip(self._point + np.clip(change, -1, 1) * steps, 0, 1)
        self._decisions += 1
        score = self._clock.score(self.task, self.settings, self.config.rule)
        terms = self.terms(score)
        info = self._info() | {"terms": terms, "score": asdict(score)}
        truncated = self._decisions >= self.config.decisions
        return self._observation(), float(sum(terms.values())), False, truncated, info

    def terms(self, score: Score) -> dict[str, float]:
        """Return the weighted terms of the reward of a score at the settings now."""
        weights = self.config.reward
        settings = self.settings
        inside = (
            _inside(settings.fallback_threshold, *weights.fallback)
            + _inside(settings.rollback_threshold / self.config.k, *weights.rollback)
        ) / 2
        return {
            "speed": weights.speed * score.speedup,
            "acceptance": weights.acceptance * score.acceptance,
            "shaping": weights.shaping * inside,
            "distance": -weights.distance * score.distance,
        }

    def _ranges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the low and the high ends of both thresholds' ranges, [2] each."""
        low, high = np.array([FALLBACK_RANGE, rollback_range(self.config.k)]).T
        return low, high

    def _observation(self) -> Vector:
        parts = [self._point]
        if self.config.context:
            known = self.task.context()
            parts.append(np.array([known[name] for name in CONTEXT]))
        return np.concatenate(parts).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"task": self.task.name, "settings": asdict(self.settings)}


def synthetic_tasks() -> tuple[TracedTask, ...]:
    """Return three synthetic pairs, from a good and slow draft to a poor and fast one."""
    return tuple(
        TracedTask(
            name=f"synthetic-{place}",
            trace=synthetic_trace(SyntheticPair(noise=noise, seed=place), rows=8),
            costs=CostModel.of_ratio(ratio, per_token=0.02),
        )
        for place, (noise, ratio) in enumerate(((0.6, 0.3), (1.0, 0.15), (1.8, 0.05)))
    )


def _inside(value: float, low: float, high: float) -> float:
    """Return 1 inside an interval, falling outside to −1 at twice its width from it."""
    outside = max(low - value, value - high, 0.0)
    return max(1.0 - outside / (high - low), -1.0)
