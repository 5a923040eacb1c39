"""A run as read from its folder; torn and missing files are skipped.

If the run was steered, and a run of the same configuration that was left alone is in the folder
next to it, that one is read as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from trainenv.records.decision_files import read_decisions
from trainenv.records.lineage import last_kept
from trainenv.records.live_log import COLUMNS
from trainenv.records.made_of import MadeOf
from trainenv.records.processes import read_processes
from trainenv.records.run_folder import read_events, read_validation
from trainenv.records.telemetry_log import read_part
from trainenv.report.drawing import formatting
from trainenv.tools.json_lines import read_lines
from trainenv.types import UserError

_COLUMNS = [*COLUMNS, "lr_scale"]
MOST_NEIGHBOURS = 500  # most folders next to a run that are searched for one that was left alone


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as far as it is recorded.

    Attributes:
        path: Folder of the run.
        config: Configuration; empty if it can't be read.
        summary: Final summary; None while the run trains, and if it was killed.
        steps: Table with one row an optimizer step, with `COLUMNS` and `kept`, which is True
            unless the step was rolled back later.
        validation: Step, line, loss and kept of each validation.
        events: Events in the order of their recording.
        decisions: Decisions in the order of their recording.
        processes: Start and end of each process that trained the run, see `records.processes`.
        planted: Planted faults by optimizer step, for the steps that had any.
        steered_by: Flags or class of the callback; empty for a run that was left alone.
        left_alone: Run of the same configuration that was left alone; None without one.
    """

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    summary: Mapping[str, Any] | None = field(repr=False)
    steps: pd.DataFrame = field(repr=False)
    validation: list[dict[str, Any]] = field(repr=False)
    events: list[dict[str, Any]] = field(repr=False)
    decisions: list[dict[str, Any]] = field(repr=False)
    processes: list[dict[str, Any]] = field(default_factory=list, repr=False)
    planted: Mapping[int, tuple[str, ...]] = field(default_factory=dict, repr=False)
    steered_by: str = ""
    left_alone: RunRecord | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The run's name, followed by its folder's if that is different."""
        folder = self.path.resolve().name
        name = str(self.config.get("name") or folder)
        if name == folder:
            return name
        return f"{name} · {folder}"

    @property
    def kept(self) -> pd.DataFrame:
        """The rows of the steps that were kept."""
        kept: pd.DataFrame = self.steps[self.steps["kept"]]
        return kept

    @property
    def last_step(self) -> int:
        """The last step of the kept history."""
        steps = [*self.kept["step"].tail(1), *(v["step"] for v in self.validation if v["kept"])]
        return int(max(steps, default=0))

    @property
    def furthest(self) -> int:
        """The highest step that was ever trained, rolled-back steps included."""
        if not len(self.steps):
            return self.last_step
        return max(self.last_step, int(self.steps["step"].max()))

    @property
    def budget(self) -> int | None:
        """The optimizer steps of the configuration; None if unknown."""
        steps = self.config.get("steps")
        if not isinstance(steps, int):
            return None
        return steps


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """A return of the run to an earlier step.

    Attributes:
        start: Step at which the run was.
        to: Step to which it returned.
    """

    start: float
    to: float

    @property
    def about(self) -> str:
        """The text that appears under the pointer."""
        return (
            f"rolled back from step {formatting.whole(self.start)} to {formatting.whole(self.to)}"
        )


def rollbacks(record: RunRecord) -> Iterator[Rollback]:
    """Yield the rollbacks of a run in the order of their recording."""
    for event in record.events:
        to = formatting.finite((event.get("detail") or {}).get("to"))
        if event["kind"] == "rewind" and to is not None:
            yield Rollback(start=event["step"], to=to)


def is_run(folder: Path) -> bool:
    """Tell if a folder is that of a run."""
    began = (folder / "validation.jsonl").is_file() or any(
        (folder / "telemetry").glob("part-*.parquet")
    )
    return began and (folder / "config.yaml").is_file()


def read_run(folder: Path) -> RunRecord:
    """Read the run in `folder`, or in a folder of two runs the one of them that was steered.

    Raises:
        UserError: The folder is not that of a run.
    """
    steered = _steered_of_two(folder)
    record = _read(steered or folder)
    if not record.steered_by:
        return record
    twin = _left_alone(record.path)
    if twin is None:
        return record
    return replace(record, left_alone=_read(twin))


def _read(folder: Path) -> RunRecord:
    if not is_run(folder):
        expected = f"expected the folder of a run or of a comparison in {folder}"
        raise UserError(f"{expected}, found {_found(folder)}; give one that trainenv recorded in")
    steps, planted = _steps(folder / "telemetry")
    last = last_kept(steps, read_lines(folder / "lines.jsonl"))
    steps["kept"] = steps["step"] <= steps["line"].map(last)
    validation = [v for v in read_validation(folder) if {"step", "loss"} <= set(v)]
    return RunRecord(
        path=folder,
        config=_mapping(folder / "config.yaml", yaml.safe_load) or {},
        summary=_mapping(folder / "summary.json", json.loads),
        steps=_last_of_each(steps),
        validation=[
            {**v, "kept": v["step"] <= last.get(v.get("line", 0), math.inf)} for v in validation
        ],
        events=[
            event
            for event in read_events(folder)
            if isinstance(event.get("step"), int) and isinstance(event.get("kind"), str)
        ],
        decisions=read_decisions(folder),
        processes=read_processes(folder),
        planted=planted,
        steered_by=_steering(folder),
    )


def _steering(folder: Path) -> str:
    made = MadeOf.read(folder)
    if made is None or not (made.flags or made.callback):
        return ""
    return made.steered_by


def _steered_of_two(folder: Path) -> Path | None:
    """Return the steered one of two runs in a folder that differ in nothing else; None otherwise.

    `trainenv demo` leaves such a folder.
    """
    if is_run(folder) or not folder.is_dir():
        return None
    runs = [child for child in sorted(folder.iterdir()) if child.is_dir() and is_run(child)]
    if len(runs) != 2 or _configured(runs[0]) != _configured(runs[1]):
        return None
    steered = [run for run in runs if _steering(run)]
    if len(steered) != 1:
        return None
    return steered[0]


def _left_alone(folder: Path) -> Path | None:
    """Return the run next to a steered one that has its configuration and was left alone."""
    ours = _configured(folder)
    place = folder.resolve()
    with suppress(OSError):
        for other in sorted(place.parent.iterdir())[:MOST_NEIGHBOURS]:
            twin = other != place and is_run(other) and _configured(other) == ours
            if twin and not _steering(other):
                return other
    return None


def _configured(folder: Path) -> bytes:
    """Return the configuration as it was written; empty if it can't be read."""
    try:
        return (folder / "config.yaml").read_bytes()
    except OSError:
        return b""


def _steps(folder: Path) -> tuple[pd.DataFrame, dict[int, tuple[str, ...]]]:
    """Read the run's own steps from all whole parts, in the order of training.

    Returns:
        Table of the steps, and the planted faults by optimizer step.
    """
    tables = []
    for part in sorted(folder.glob("part-*.parquet")):
        try:
            table = read_part(part, [*_COLUMNS, "purpose", "stressors"])
        except (OSError, pa.ArrowException):  # torn by a crash
            continue
        tables.append(table.filter(pc.equal(table["purpose"], "main")))
    if not tables:
        empty = {name: pd.Series(dtype=np.float64) for name in _COLUMNS}
        return pd.DataFrame(empty), {}
    table = pa.concat_tables(tables)
    faulty = table.filter(pc.greater(pc.list_value_length(table["stressors"]), 0))
    planted = {
        int(step): tuple(names)
        for step, names in zip(faulty["step"].to_pylist(), faulty["stressors"].to_pylist())
    }
    rows: pd.DataFrame = table.select(_COLUMNS).to_pandas()
    return rows, planted


def _last_of_each(steps: pd.DataFrame) -> pd.DataFrame:
    """Keep only the later row of a step that was recorded twice.

    A process that is killed may have recorded steps after its last checkpoint.
    """
    twice = steps["kept"] & steps[steps["kept"]].duplicated("step", keep="last").reindex(
        steps.index, fill_value=False
    )
    steps["kept"] = (steps["kept"] & ~twice).astype(bool)
    return steps


def _mapping(path: Path, parse: Any) -> dict[str, Any] | None:
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(value, dict):
        return None
    return value


def _found(folder: Path) -> str:
    """Describe a folder that is not that of a run."""
    if not folder.exists():
        return "no such folder"
    if not folder.is_dir():
        return "a file"
    runs = sorted(child.name for child in folder.iterdir() if child.is_dir() and is_run(child))
    if not runs:
        return "none"
    return f"the folders of several runs ({', '.join(runs)}), one of which can be given"
