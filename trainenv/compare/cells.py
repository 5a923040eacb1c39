"""Cells: a method that has trained a run, measured and kept as one JSON file.

cells/{trunk}/{seed}/{method}.json     what was measured runs/{trunk}/{seed}/{method}/          the
run's folder, deleted once it is measured unless it is to be kept
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainenv.compare.allowed_flops import allowance
from trainenv.compare.contract import Measure, Method, Stop
from trainenv.compare.trunks import Trunk
from trainenv.tools.json_lines import plain
from trainenv.types import UserError

MEASURED = (
    "ended",
    "steps",
    "final_loss",
    "log_final_loss",
    "instability",
    "recovery",
    "flops",
    "total_flops",
    "wasted",
    "drafting",
    "decisions",
)
"""What a `Measure` says of a run's folder: keys of a cell's row."""

OVERSPENT = (
    0.01  # share of the budget that a method may exceed it by: the last block, the last evaluation
)
Row = dict[str, Any]
"""A cell as it is kept: `trunk`, `seed`, `method`, the keys of `MEASURED`, `error`, `budget` (FLOPs) and `seconds`."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Where a method meets a run."""

    trunk: str
    seed: int
    method: str

    def file(self, folder: Path) -> Path:
        """Of its row."""
        return folder / "cells" / self.trunk / str(self.seed) / f"{self.method}.json"

    def run_folder(self, folder: Path) -> Path:
        """Where its run records."""
        return folder / "runs" / self.trunk / str(self.seed) / self.method

    def __str__(self) -> str:
        return f"{self.method} on {self.trunk}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a process needs to play a cell."""

    cell: Cell
    trunk: Trunk
    method: Method
    measure: Measure
    folder: Path
    keep: bool = False


def play(task: Task, stop: Stop = lambda: False) -> Row | None:
    """Train and measure a cell, and keep its row; None where `stop` has ended it.

    Whatever the method raises is a failed cell.
    """
    cell = task.cell
    here = task.cell.run_folder(task.folder)
    shutil.rmtree(here, ignore_errors=True)  # what a process that was killed has left
    here.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        config = task.trunk.config(cell.seed)
        summary = task.method(config, here, lambda run, window: None, stop)
        if summary.get("ended") == "interrupted":
            return None
        row = _measured(cell, task.measure(here), allowance(config))
    except Exception as error:  # whatever a method may raise: the other cells go on
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        row = failed(cell, said)
    finally:
        if not task.keep:
            shutil.rmtree(here, ignore_errors=True)
    return write(task.folder, row | {"seconds": round(time.perf_counter() - started, 3)})


def failed(cell: Cell, error: str) -> Row:
    """The row of a cell that could not be played."""
    nothing = dict.fromkeys(MEASURED) | {"ended": "failed"}
    return {**_named(cell), **nothing, "error": error, "budget": None, "seconds": 0.0}


def read(folder: Path, cell: Cell) -> Row | None:
    """The row of a cell; None where it was not played."""
    try:
        row = json.loads(cell.file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(row, dict) and row.keys() >= {*_named(cell), *MEASURED, "error"}
    return row if whole and _named(cell).items() <= row.items() else None


def write(folder: Path, row: Row) -> Row:
    """Keep a row, whole or not at all; returns it as it will be read."""
    row = plain(row)
    path = Cell(trunk=row["trunk"], seed=row["seed"], method=row["method"]).file(folder)
    write_json(path, row)
    return row


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(plain(value), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"expected to be able to write {path}, found: {error.strerror}; what was measured so far is kept"
        ) from None


def _measured(cell: Cell, measured: Mapping[str, Any], budget: float) -> Row:
    """The row of what was measured, checked: it has a final loss, and the budget was held."""
    if missing := [key for key in MEASURED if key not in measured]:
        return failed(
            cell, f"expected the measures {', '.join(MEASURED)}, found no {', '.join(missing)}"
        )
    row = {
        **_named(cell),
        **{key: measured[key] for key in MEASURED},
        "error": "",
        "budget": budget,
    }
    loss = measured["log_final_loss"]
    total = measured["total_flops"]
    if not (isinstance(loss, int | float) and math.isfinite(loss)):
        return row | {
            "ended": "failed",
            "error": f"expected a final validation loss, found {loss!r}",
        }
    if total > budget * (1 + OVERSPENT):
        over = f"spent {100 * (total / budget - 1):.1f} % more than its budget: {total:.4g} FLOPs of {budget:.4g}"
        return row | {"ended": "failed", "error": f"not at equal compute: {over}"}
    return row


def _named(cell: Cell) -> Row:
    return {"trunk": cell.trunk, "seed": cell.seed, "method": cell.method}
