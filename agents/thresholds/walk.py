"""The walk of an agent over settings, as an environment of Gymnasium.

An observation is the point of the unit cube, scaled to −1 … 1, followed by the context of the task.
An action moves each setting by at most its step. The reward is the score at the new point: each
step is one evaluation of the task's budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from trainenv.agents.thresholds.contract import Floats, TuningProblem

Observation = NDArray[np.float32]


class ThresholdWalk(gym.Env[Observation, Observation]):
    """Episodes of moves in the settings of some tasks.

    Observation: float32 [D + C] in −10 … 10: the point, −1 … 1, and the context.
    Action: float32 [D] in −1 … 1, times the step.
    Reward: score at the new point; it may be NaN where the measurement failed.
    Termination: none. An episode is truncated after `length` moves, or when its task's budget ends.

    Args:
        problems: Tasks; each episode has one of them, drawn at random.
        contexts: Context of each task, [T, C]; C may be 0.
        steps: Largest move of each setting, as shares of its range, [D].
        length: Number of moves of an episode.
        start: Point where episodes start, [D]; None for a random point.
    """

    def __init__(
        self,
        problems: Sequence[TuningProblem],
        contexts: Floats,
        *,
        steps: Sequence[float],
        length: int,
        start: Floats | None = None,
    ) -> None:
        dimensions = problems[0].space.dimensions
        self.observation_space = spaces.Box(
            -10, 10, (dimensions + contexts.shape[1],), dtype=np.float32
        )
        self.action_space = spaces.Box(-1, 1, (dimensions,), dtype=np.float32)
        self._problems = problems
        self._contexts = contexts
        self._steps = np.asarray(steps, dtype=np.float64)
        self._length = length
        self._start = start
        self._task = 0
        self._moves = 0
        self._point = np.full(dimensions, 0.5)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._task = int(self.np_random.integers(len(self._problems)))
        self._moves = 0
        self._point = self.np_random.random(len(self._steps))
        if self._start is not None:
            self._point = self._start.copy()
        return self._observed(), {}

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self._point = moved(self._point, action, self._steps)
        score = self._problems[self._task].score(self._point)
        self._moves += 1
        return self._observed(), float(score), False, self._moves >= self._length, {}

    def _observed(self) -> Observation:
        return observed(self._point, self._contexts[self._task])


def moved(point: Floats, action: NDArray[Any], steps: Floats) -> Floats:
    """Return the point [D] after an action [D]; a part that is not finite does not move."""
    shift = np.nan_to_num(np.asarray(action, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    found: Floats = np.clip(point + np.clip(shift, -1, 1) * steps, 0, 1)
    return found


def observed(point: Floats, context: Floats) -> Observation:
    """Return the observation of a point [D] and a context [C]."""
    return np.concatenate([2 * point - 1, np.clip(context, -10, 10)]).astype(np.float32)
