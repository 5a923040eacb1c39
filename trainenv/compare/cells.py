"""Cells of a comparison: one method on one run. Each is kept as one JSON file.

| path | holds |
|---|---|
| `cells/{scenario}/{seed}/{method}.json` | the row of the cell |
| `runs/{scenario}/{seed}/{method}/` | the folder of the run; deleted after measuring by default |
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainenv.compare.allowed_flops import allowance
from trainenv.compare.contract import Measure, Method, Stop
from trainenv.compare.scenarios import Scenario
from trainenv.tools import atomic_files
from trainenv.tools.error_text import describe_error
from trainenv.tools.json_lines import number_or_nan, plain
from trainenv.types import UserError

MEASURED = (
    "ended",
    "steps",
    "final_loss",
    "log_final_loss",
    "test_loss",
    "instability",
    "recovery",
    "flops",
    "total_flops",
    "wasted",
    "drafting",
    "decisions",
)
"""Keys of what a `Measure` returns.

In the row of a cell, `final_loss` and `log_final_loss` are of the test part where the scenario has
`validation.test_sequences`, else of the validation set. A `Measure` may leave out `test_loss` if no
scenario has them.
"""

# Share of the budget that a method may overspend, for its last block and its last evaluation.
OVERSPENT = 0.01
Row = dict[str, Any]
"""Row of a cell: `scenario`, `seed`, `method`, the keys of `MEASURED`, `error`, `budget` (FLOPs)
and `seconds`.
"""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one run.

    Attributes:
        scenario: Name of the scenario.
        seed: Number of the run, from 0 on.
        method: Name of the method.
    """

    scenario: str
    seed: int
    method: str

    def file(self, folder: Path) -> Path:
        """Return the path of the row, in the folder of a comparison."""
        return folder / "cells" / self.scenario / str(self.seed) / f"{self.method}.json"

    def run_folder(self, folder: Path) -> Path:
        """Return the folder that the run records in."""
        return folder / "runs" / self.scenario / str(self.seed) / self.method

    def __str__(self) -> str:
        return f"{self.method} on {self.scenario}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a process needs to play a cell.

    Attributes:
        cell: Names and number of the cell.
        scenario: Scenario to train.
        method: Method that trains it.
        measure: Function that measures the folder of the run.
        folder: Folder of the comparison.
        keep: Flag: the folder of the run is kept.
    """

    cell: Cell
    scenario: Scenario
    method: Method
    measure: Measure
    folder: Path
    keep: bool = False


def play(task: Task, stop: Stop = lambda: False) -> Row | None:
    """Train and measure a cell, and write its row; return None if `stop` ended it.

    Whatever the method raises makes a failed cell.
    """
    cell = task.cell
    here = task.cell.run_folder(task.folder)
    shutil.rmtree(here, ignore_errors=True)  # left by a process that was killed
    here.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        config = task.scenario.config(cell.seed)
        summary = task.method(config, here, lambda run, window: None, stop)
        if summary.get("ended") == "interrupted":
            return None
        measured = {"test_loss": None, **task.measure(here)}
        part = task.scenario.measured_on
        if part == "test":
            measured = _on_test_part(measured)
        row = _measured(cell, measured, allowance(config), part)
    except Exception as error:  # whatever a method may raise: the other cells are still played
        row = failed(cell, describe_error(error))
    finally:
        if not task.keep:
            shutil.rmtree(here, ignore_errors=True)
    return write(task.folder, row | {"seconds": round(time.perf_counter() - started, 3)})


def measure_cell(folder: Path, /) -> dict[str, Any]:
    """Measure the run in a folder: a `Measure` with what `trainenv.records.metrics` defines."""
    from trainenv.records.metrics import measure

    measured = measure(folder).to_json()
    row = {key: measured[key] for key in MEASURED}
    if row["decisions"] is not None:
        # Leave out the list by decisions, which a comparison does not read.
        row["decisions"] = {k: v for k, v in row["decisions"].items() if k != "over_time"}
    return row


def failed(cell: Cell, error: str) -> Row:
    """Return the row of a cell that could not be played."""
    nothing = dict.fromkeys(MEASURED) | {"ended": "failed"}
    return {**_named(cell), **nothing, "error": error, "budget": None, "seconds": 0.0}


def read(folder: Path, cell: Cell) -> Row | None:
    """Return the row of a cell; None if it was not played, or its file is torn or foreign."""
    try:
        row = json.loads(cell.file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(row, dict):
        return None
    if "trunk" in row:  # the name of a scenario, in the version before
        row = {"scenario": row["trunk"], **row}
        del row["trunk"]
    row.setdefault("test_loss", None)  # earlier versions measured none
    whole = row.keys() >= {*_named(cell), *MEASURED, "error"}
    if whole and _named(cell).items() <= row.items():
        return row
    return None


def write(folder: Path, row: Row) -> Row:
    """Write a row, whole or not at all; return it as it will be read."""
    row = plain(row)
    path = Cell(scenario=row["scenario"], seed=row["seed"], method=row["method"]).file(folder)
    write_json(path, row)
    return row


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all, and the folder for it.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_json(path, value)
    except OSError as error:
        raise UserError(
            f"expected to be able to write {path}, found: {error.strerror}; make room, then run "
            "the same command: what was measured so far is kept"
        ) from None


def _on_test_part(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measured values with the test loss as the final loss; none if there is none."""
    loss = number_or_nan(measured["test_loss"])
    log_loss = math.nan
    if 0 < loss < math.inf:
        log_loss = math.log(loss)
    return {**measured, "final_loss": loss, "log_final_loss": log_loss}


def _measured(cell: Cell, measured: Mapping[str, Any], budget: float, part: str) -> Row:
    """Return the row of measured values; failed without a final loss, or over the budget.

    `part` names the part of the corpus that the final loss is of.
    """
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
            "error": f"expected a final {part} loss, found {loss!r}",
        }
    if total > budget * (1 + OVERSPENT):
        over = f"spent {100 * (total / budget - 1):.1f} % more than its budget"
        error = f"not at equal compute: {over}: {total:.4g} FLOPs of {budget:.4g}"
        return row | {"ended": "failed", "error": error}
    return row


def _named(cell: Cell) -> Row:
    return {"scenario": cell.scenario, "seed": cell.seed, "method": cell.method}
