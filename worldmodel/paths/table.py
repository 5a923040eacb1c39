"""Rows of a data set of paths as arrays: one example for each decision of each run.

At the start of a run nothing is measured, and all random paths begin at the scheduled rate. But a
run under a schedule and a path is also a run under a schedule that is e^s times as high and a path
that is s lower. So each run gives several examples of a start, each for another schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainenv.worldmodel.dataset.rng_streams import stream
from trainenv.worldmodel.features import STATE
from trainenv.worldmodel.paths.groups import Group
from trainenv.worldmodel.paths.inputs import Floats, path_features, start_state, state_inputs
from trainenv.worldmodel.paths.store import PathFiles

_LEAST_LR = 1e-30
_STARTS = 8  # examples of its start that a run gives
_SHIFTS = (math.log(0.1), math.log(5.0))  # bounds of the first change of their paths


@dataclass(frozen=True, kw_only=True)
class PathTable:
    """Examples: a state, the path that followed, and how the run ended.

    Attributes:
        inputs: [n, I] inputs of the state, then of the path.
        change: [n] ln of the final loss less ln of the loss at the decision.
        level: [n] ln of the loss at the decision; at the start, median of `end` on the text.
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
        starts: dict[str, list[PathTable]] = {}
        first = 0
        for folder in folders:
            files = PathFiles.open(folder)
            for name in files.names():
                group, rows = files.read(name)
                columns = {key: rows[key].to_pylist() for key in rows.column_names}
                number = first + group.index
                usual = math.log(group.size.lr)
                starts.setdefault(group.text, []).append(_starts(columns, number, usual, group))
                parts.append(_examples(columns, number, usual))
            first = 1 + max((int(part.group[0]) for part in parts if len(part)), default=-1)
        parts += [_relative(concatenate(of_text)) for of_text in starts.values()]
        return concatenate(parts)


def _relative(starts: PathTable) -> PathTable:
    """Return starts of runs on one text, whose level is the median end there.

    How hard a text is matters more than the path, and is not known at the start.
    """
    level = float(np.median(starts.end))
    return replace(starts, change=starts.end - level, level=np.full(len(starts), level))


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


def _starts(columns: dict[str, list[object]], number: int, usual: float, group: Group) -> PathTable:
    """Return examples of the starts of one group's runs, as decision 0.

    Runs that a planner steered are left out: their paths depend on how they went.

    Args:
        columns: Columns of the group's rows.
        number: Number of the group.
        usual: ln of the learning rate that usually suits the size of its runs.
        group: Configuration of the runs.
    """
    random = np.flatnonzero(np.array(columns["followed"]) == 0)
    runs = np.repeat(random, _STARTS)
    paths = np.array(columns["path"], dtype=np.float64)[runs]
    schedules = np.array(columns["schedule"], dtype=np.float64)[runs]
    ends = np.array(columns["end"], dtype=np.float64)[runs]
    rng = stream(group.seed, "start", group.index)
    shift = rng.uniform(*_SHIFTS, size=(len(runs), 1))
    shift[::_STARTS] = 0.0
    scheduled = schedules * np.exp(-shift)
    first = np.log(np.maximum(scheduled[:, 0], _LEAST_LR))
    ahead = path_features(
        scheduled, paths + shift, np.zeros(len(runs)), first, np.full(len(runs), usual)
    )
    state = state_inputs(start_state(group.steps)[None])
    return PathTable(
        inputs=np.concatenate([np.repeat(state, len(runs), axis=0), ahead], axis=1),
        change=ends,
        level=np.zeros(len(runs)),
        end=ends,
        group=np.full(len(runs), number),
        run=runs,
        decision=np.zeros(len(runs), dtype=np.int64),
    )
