"""Which of a run's recorded steps are its history: rewinds and resumptions begin new lines of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd


def last_kept(steps: pd.DataFrame, begun: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """The last step of each line that is history, -inf for a line that has none.

    A line stands up to where the lowest of the later ones begins. A line that a rewind began, and that the run was killed in
    before it was saved, is lost: what is gone on with knows of fewer rewinds.

    Args:
        steps: what was recorded: `line` and `step` of each row.
        begun: the records of `lines.jsonl`; a line that has no step yet is known from here alone.
    """
    first = steps.groupby("line", as_index=False)["step"].min()
    starts = {0: 0} | {int(line): int(step) - 1 for line, step in zip(first["line"], first["step"])}
    rewinds: dict[int, int] = {}
    for record in begun:
        if {"line", "step"} <= set(record):
            starts[record["line"]] = record["step"]
            if "rewinds" in record:
                rewinds[record["line"]] = record["rewinds"]
    kept: dict[int, float] = {}
    lowest = fewest = math.inf
    for line in sorted(starts, reverse=True):
        behind = rewinds.get(line, fewest)
        lost = behind > fewest
        kept[line] = -math.inf if lost else lowest
        if not lost:
            lowest, fewest = min(lowest, starts[line]), behind
    return kept
