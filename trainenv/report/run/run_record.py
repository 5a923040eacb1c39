"""A run as read from its folder; torn and missing files are skipped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from trainenv.records.decision_files import read_decisions
from trainenv.records.lineage import last_kept
from trainenv.records.live_log import COLUMNS
from trainenv.records.run_folder import read_events, read_validation
from trainenv.records.telemetry_log import read_part
from trainenv.report.drawing import formatting
from trainenv.tools.json_lines import read_lines
from trainenv.types import UserError


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
    """

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    summary: Mapping[str, Any] | None = field(repr=False)
    steps: pd.DataFrame = field(repr=False)
    validation: list[dict[str, Any]] = field(repr=False)
    events: list[dict[str, Any]] = field(repr=False)
    decisions: list[dict[str, Any]] = field(repr=False)

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
    """Read the run in `folder`.

    Raises:
        UserError: The folder is not that of a run.
    """
    if not is_run(folder):
        expected = f"expected the folder of a run or of a comparison in {folder}"
        raise UserError(f"{expected}, found {_found(folder)}; give one that trainenv recorded in")
    steps = _steps(folder / "telemetry")
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
        events=[event for event in read_events(folder) if {"step", "kind"} <= set(event)],
        decisions=read_decisions(folder),
    )


def _steps(folder: Path) -> pd.DataFrame:
    """Read the run's own steps from all whole parts, in the order of training."""
    tables = []
    for part in sorted(folder.glob("part-*.parquet")):
        try:
            table = read_part(part, [*COLUMNS, "purpose"])
        except (OSError, pa.ArrowException):  # torn by a crash
            continue
        tables.append(table)
    if not tables:
        return pd.DataFrame({name: pd.Series(dtype=np.float64) for name in COLUMNS})
    rows: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    main: pd.DataFrame = (
        rows[rows["purpose"] == "main"].drop(columns="purpose").reset_index(drop=True)
    )
    return main


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
