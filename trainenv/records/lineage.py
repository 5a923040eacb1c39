"""Lineage of a run: which recorded steps are its history.

A rewind leaves steps behind and starts a new line. When a process is killed, the steps after its
last checkpoint are lost; the resumed run starts a new line too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd


def last_kept(steps: pd.DataFrame, begun: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Return the last step of each line that is history; -inf for a line that was lost.

    It is the lowest step that a later line starts from.

    Args:
        steps: Recorded steps, with the columns `line` and `step`.
        begun: Records of `lines.jsonl`, in order; they also name lines without any step.
    """
    records = _whole(begun)
    first = steps.groupby("line", as_index=False)["step"].min()
    starts = {0: 0} | {int(line): int(step) - 1 for line, step in zip(first["line"], first["step"])}
    starts |= {record["line"]: record["step"] for record in records}
    saved = last_saved(records)
    kept = dict[int, float]()
    lowest = math.inf
    for line in sorted(starts, reverse=True):
        if saved.get(line, math.inf) == -math.inf:
            kept[line] = -math.inf
            continue
        kept[line] = lowest
        lowest = min(lowest, starts[line])
    return kept


def last_saved(begun: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Return the last step of each line that was saved; -inf for a line that was lost as a whole.

    A resumed run has as many rewinds behind it as its checkpoint. Lines with more rewinds are lost.
    Of lines with the same number, the steps after the checkpoint are lost. Steps that a rewind left
    behind count as saved: they were taken.

    Args:
        begun: Records of `lines.jsonl`, in order. Records without the number of rewinds lose
            nothing.
    """
    saved = {0: math.inf}
    rewinds = {0: 0}
    before = 0
    for record in _whole(begun):
        line = record["line"]
        behind = record.get("rewinds", before)
        if "rewinds" in record and behind <= before:  # a resume; a rewind would have added one
            for earlier, count in rewinds.items():
                if count > behind:
                    saved[earlier] = -math.inf
                elif count == behind:
                    saved[earlier] = min(saved[earlier], record["step"])
        saved[line] = math.inf
        rewinds[line] = behind
        before = behind
    return saved


def _whole(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records that name a line and a step."""
    return [record for record in records if {"line", "step"} <= set(record)]
