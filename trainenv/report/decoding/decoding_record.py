"""Measured thresholds as read from their folder: settings of each task, and methods."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainenv.types import UserError

DECODING = "decoding.json"
"""File of the record in its folder."""
BOUND = "oracle"
"""Method that knows the held-out texts."""


@dataclass(frozen=True, kw_only=True)
class DecodingRecord:
    """Thresholds that were measured on tasks.

    Attributes:
        path: Folder of the record.
        plan: Budget, number of seeds, rule and further choices.
        tasks: Tasks: `name`, `pair`, `corpus`, `clock`, and `points` with settings, `rule`,
            `speedup` and `distance`.
        methods: Measures of each method over all tasks, with intervals.
        rows: Measures of each method on each task and seed.
        finished: True if no cell is missing.
        summary: Result of a search or a recommendation, a sentence; empty for a comparison.
    """

    path: Path
    plan: Mapping[str, Any]
    tasks: Sequence[Mapping[str, Any]] = field(repr=False)
    methods: Sequence[Mapping[str, Any]] = field(repr=False)
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    finished: bool
    summary: str = ""

    @property
    def chosen(self) -> list[Mapping[str, Any]]:
        """The methods without the bound, the fastest first."""
        known = [one for one in self.methods if one["method"] != BOUND]
        return sorted(known, key=lambda one: float(one["regret"]["value"]))

    def of_task(self, task: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the mean measures of each method on a task, the fastest first."""
        mine = [row for row in self.rows if _task(row) == _task(task)]
        found = []
        for label in dict.fromkeys(row["label"] for row in mine):
            rows = [row for row in mine if row["label"] == label]
            means = {
                name: sum(float(row[name]) for row in rows) / len(rows)
                for name in ("speedup", "acceptance", "distance", "regret", "evaluations")
            }
            found.append({"label": label, "settings": rows[0]["settings"], **means})
        return sorted(found, key=lambda row: float(row["regret"]))


def is_decoding(folder: Path) -> bool:
    """Tell if a folder has a record of measured thresholds."""
    return (folder / DECODING).is_file()


def read_decoding(folder: Path) -> DecodingRecord:
    """Read the record in a folder.

    Raises:
        UserError: There is none, or it can't be read.
    """
    try:
        found = json.loads((folder / DECODING).read_text(encoding="utf-8"))
        return DecodingRecord(
            path=folder,
            plan=found["plan"],
            tasks=found["tasks"],
            methods=found["methods"],
            rows=found["rows"],
            finished=bool(found["finished"]),
            summary=str(found.get("summary", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"expected measured thresholds in {folder / DECODING}, found none that can be read; "
            "run trainenv decode evaluate again"
        ) from None


def _task(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return row["pair"], row["corpus"], row["clock"]
