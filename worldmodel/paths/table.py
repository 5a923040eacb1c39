"""Rows of a data set of paths as arrays: one example for each decision of each run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainenv.worldmodel.features import STATE
from trainenv.worldmodel.paths.inputs import Floats, path_features, state_inputs
from trainenv.worldmodel.paths.store import PathFiles

_LEAST_LR = 1e-30


@dataclass(frozen=True, kw_only=True)
class PathTable:
    """Examples: a state, the path that followed, and how the run ended.

    Attributes:
        inputs: [n, I] inputs of the state, then of the path.
        change: [n] ln of the final loss less ln of the loss at the decision.
        level: [n] ln of the loss at the decision.
        end: [n] ln of the final loss.
        group: [n] number of the group.
        run: [n] number of the run in its group; 0 was left alone.
        decision: [n] number of the decision in its run.
    """

    inputs: Floats
    change: Floats
    level: Floats
    end: Floats
    group: NDArray[np.int64]
    run: NDArray[np.int64]
    decision: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.change)

    def where(self, chosen: NDArray[np.bool_]) -> PathTable:
        """Return the examples with a flag."""
        return PathTable(**{one.name: getattr(self, one.name)[chosen] for one in fields(self)})

    @classmethod
    def of(cls, folders: Iterable[Path]) -> PathTable:
        """Read the data sets in some folders; the groups of later ones get new numbers.

        Raises:
            UserError: A folder holds no data set, or a file is damaged.
        """
        parts = []
        first = 0
        for folder in folders:
            files = PathFiles.open(folder)
            for name in files.names():
                group, rows = files.read(name)
                columns = {key: rows[key].to_pylist() for key in rows.column_names}
                parts.append(_examples(columns, first + group.index, math.log(group.size.lr)))
            first = 1 + max((int(part.group[0]) for part in parts if len(part)), default=-1)
        return concatenate(parts)


def concatenate(parts: Sequence[PathTable]) -> PathTable:
    """Return the examples of several tables."""
    return PathTable(
        **{
            one.name: np.concatenate([getattr(part, one.name) for part in parts])
            for one in fields(PathTable)
        }
    )


def _examples(columns: dict[str, list[object]], number: int, usual: float) -> PathTable:
    """Return the examples of one group; decisions without a finite loss are left out.

    Args:
        columns: Columns of the group's rows.
        number: Number of the group.
        usual: ln of the learning rate that usually suits the size of its runs.
    """
    paths = np.array(columns["path"], dtype=np.float64)  # [K, D]
    schedules = np.array(columns["schedule"], dtype=np.float64)
    levels = np.array(columns["levels"], dtype=np.float64)
    states = np.array(columns["states"], dtype=np.float64)
    states = states.reshape(*levels.shape, len(STATE))  # [K, D, F]
    ends = np.array(columns["end"], dtype=np.float64)
    rates = np.log(np.maximum(schedules, _LEAST_LR)) + paths
    parts = []
    for d in range(1, paths.shape[1]):
        fine = np.flatnonzero(np.isfinite(levels[:, d]))
        now = paths[fine, d - 1]
        ahead = path_features(
            schedules[fine, d:],
            paths[fine, d:] - now[:, None],
            now,
            rates[fine, :d].max(axis=1),
            np.full(len(fine), usual),
        )
        parts.append(
            PathTable(
                inputs=np.concatenate([state_inputs(states[fine, d]), ahead], axis=1),
                change=ends[fine] - levels[fine, d],
                level=levels[fine, d],
                end=ends[fine],
                group=np.full(len(fine), number),
                run=fine,
                decision=np.full(len(fine), d),
            )
        )
    return concatenate(parts)
