"""What is known of a run from its folder, as far as it went: torn files and files still missing are passed over."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from trainenv.records.decision_files import read_decisions
from trainenv.records.lineage import last_kept
from trainenv.records.run_folder import read_events, read_validation
from trainenv.records.telemetry_log import read_part
from trainenv.tools.json_lines import read_lines
from trainenv.types import UserError

COLUMNS = (
    "line",
    "step",
    "loss",
    "lr",
    "volatility",
    "entropy",
    "disagreement",
    "index",
    "threshold",
    "fired",
)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run, as far as it went.

    Attributes:
        path: its folder.
        config: its configuration; empty where it can't be read.
        summary: what it ended with; None while it is going on, and where it was killed.
        steps: a row an optimizer step of the run, with `COLUMNS` and `kept`: no later line went
            back behind it.
        validation: step, line, loss and kept of each validation.
        events, decisions: as they were recorded, in order.
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
        """The run's name, with its folder's where that says more."""
        name = str(self.config.get("name") or self.path.resolve().name)
        return name if name == self.path.resolve().name else f"{name} · {self.path.resolve().name}"

    @property
    def kept(self) -> pd.DataFrame:
        kept: pd.DataFrame = self.steps[self.steps["kept"]]
        return kept

    @property
    def last_step(self) -> int:
        """The step that the run has come to."""
        steps = [*self.kept["step"].tail(1), *(v["step"] for v in self.validation if v["kept"])]
        return int(max(steps, default=0))

    @property
    def furthest(self) -> int:
        """The highest step that was ever trained, lines that were left included."""
        return max(self.last_step, int(self.steps["step"].max()) if len(self.steps) else 0)

    @property
    def budget(self) -> int | None:
        steps = self.config.get("steps")
        return steps if isinstance(steps, int) else None


def is_run(folder: Path) -> bool:
    """Whether a folder is one that a run records in."""
    began = (folder / "validation.jsonl").is_file() or any(
        (folder / "telemetry").glob("part-*.parquet")
    )
    return began and (folder / "config.yaml").is_file()


def read_run(folder: Path) -> RunRecord:
    """The run in `folder`.

    Raises:
        UserError: no run records there.
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
    """The run's own steps of all whole parts, in the order they were trained."""
    tables = []
    for part in sorted(folder.glob("part-*.parquet")):
        try:
            table = read_part(part, [*COLUMNS, "purpose"])
        except (OSError, pa.ArrowException):  # what a crash left of it
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
    """Of steps that are kept twice (a killed process had recorded more than it had saved) the later one was kept."""
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
    return value if isinstance(value, dict) else None


def _found(folder: Path) -> str:
    """What there is instead, in words that help."""
    if not folder.exists():
        return "no such folder"
    if not folder.is_dir():
        return "a file"
    runs = sorted(child.name for child in folder.iterdir() if child.is_dir() and is_run(child))
    return (
        f"the folders of several runs ({', '.join(runs)}), one of which will do" if runs else "none"
    )
