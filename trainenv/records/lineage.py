"""What of a run's record is its history: rewinds leave steps behind, and what a killed process had not saved never happened."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd


def last_kept(steps: pd.DataFrame, begun: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """The last step of each line that was kept: the lowest that a later one begins from; -inf for a line that was lost.

    Args:
        steps: what was recorded: `line` and `step` of each row.
        begun: the records of `lines.jsonl`; a line that has no step yet is known from here alone.
    """
    records = _whole(begun)
    first = steps.groupby("line", as_index=False)["step"].min()
    starts = {0: 0} | {int(line): int(step) - 1 for line, step in zip(first["line"], first["step"])}
    starts |= {record["line"]: record["step"] for record in records}
    saved = last_saved(records)
    kept = dict[int, float]()
    lowest = math.inf
    for line in sorted(starts, reverse=True):
        lost = saved.get(line, math.inf) == -math.inf
        kept[line] = -math.inf if lost else lowest
        lowest = lowest if lost else min(lowest, starts[line])
    return kept


def last_saved(begun: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """The last step of each line that was not lost with its process, -inf for a line that was lost as a whole.

    A run that is resumed knows of as many rewinds as its checkpoint. Lines with more behind them
    are lost, and of those with as many what came after the checkpoint. Steps that a rewind left
    behind did happen.

    Args:
        begun: the records of `lines.jsonl`, in order; of those that say nothing of rewinds nothing
            is lost.
    """
    saved = {0: math.inf}
    rewinds = {0: 0}
    before = 0
    for record in _whole(begun):
        line = record["line"]
        behind = record.get("rewinds", before)
        if "rewinds" in record and behind <= before:  # a rewind would have made it one more
            for earlier in saved:
                if rewinds[earlier] >= behind:
                    saved[earlier] = min(
                        saved[earlier], record["step"] if rewinds[earlier] == behind else -math.inf
                    )
        saved[line], rewinds[line], before = math.inf, behind, behind
    return saved


def _whole(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in records if {"line", "step"} <= set(record)]
