"""Random shooting: the policy that collects further data with a model fitted to the first.

At each decision a run takes the beginning of the best of some random paths, by a model's value.
Each run has its own attitude to the ensemble's disagreement, from curious to cautious, so the data
reach what the model does not know as well as what it likes. So the states that planning leads to
become known (DAgger: Ross et al. 2011; the data loop of MuZero: Schrittwieser et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from trainenv.types import UserError
from trainenv.worldmodel.paths.inputs import Floats, PathState
from trainenv.worldmodel.paths.model import PathValueModel
from trainenv.worldmodel.paths.rate_paths import random_path
from trainenv.worldmodel.paths.serialization import load_paths

ATTITUDES = (-0.5, 0.0, 0.0, 0.5, 1.0)
"""Weights of the disagreement that a decision may have."""
_LEAST_LR = 1e-30


@dataclass(frozen=True, kw_only=True)
class RandomShooting:
    """A `trainenv.worldmodel.paths.collect.Policy`.

    Args:
        folder: Folder of the path model.
        paths: Number of random paths at each decision; the one that holds the rate is added.
    """

    folder: str
    paths: int = 48

    def __call__(
        self,
        states: Sequence[Floats],
        levels: Sequence[float],
        schedules: Sequence[Floats],
        paths: Sequence[Floats],
        usuals: Sequence[float],
        decision: int,
        rng: np.random.Generator,
        /,
    ) -> list[float]:
        """Return the ln factors of some runs from now on; see `Policy`."""
        model = _model(self.folder)
        chosen = []
        for features, level, schedule, path, usual in zip(states, levels, schedules, paths, usuals):
            now = float(path[decision - 1])
            candidates = [
                random_path(rng, len(path), path[:decision])[decision:] for _ in range(self.paths)
            ]
            rest = np.array([np.full(len(path) - decision, now), *candidates]) - now
            past = np.log(np.maximum(schedule[:decision], _LEAST_LR)) + path[:decision]
            state = PathState(
                features=features,
                level=level,
                schedule=schedule[decision:],
                now=now,
                peak=float(past.max()),
                usual=usual,
            )
            values = model.values(state, rest)
            attitude = ATTITUDES[rng.integers(len(ATTITUDES))]
            score = values.change + attitude * values.disagreement
            chosen.append(now + float(rest[int(score.argmin()), 0]))
        return chosen


@cache
def _model(folder: str) -> PathValueModel:
    model = load_paths(Path(folder))
    if model is None:
        raise UserError(f"expected a path model in {folder}, found none; fit one first")
    return model
