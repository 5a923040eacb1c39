"""Telemetry as Parquet files, with the columns of `configs/log_schema.json`.

A log is a folder of parts. Each part is written whole or not at all, so a crash never damages one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trainenv.config.presets import configs_folder
from trainenv.records.lineage import last_kept
from trainenv.tools.atomic_files import replacing
from trainenv.tools.json_lines import read_lines
from trainenv.types import TELEMETRY_FIELDS, Reading, Telemetry, UserError

_ARROW = {
    "number": pa.float64(),
    "integer": pa.int64(),
    "string": pa.string(),
    "boolean": pa.bool_(),
    "array": pa.list_(pa.string()),
}
_READING = tuple(f.name for f in fields(Reading))
_NO_NUMBERS = ("clip", "stressors", "reading", "objective")
_NUMBERS = tuple(name for name in TELEMETRY_FIELDS if name not in _NO_NUMBERS)
_OBJECTIVE = "objective"  # column of the files of a run whose objective measures something


@cache
def log_schema() -> Mapping[str, Any]:
    """Return the JSON schema of a row."""
    schema: Mapping[str, Any] = json.loads(
        (configs_folder() / "log_schema.json").read_text(encoding="utf-8")
    )
    return schema


@cache
def arrow_schema() -> pa.Schema:
    """Return the Arrow schema of a row whose objective measures nothing.

    Fields that may be unmeasured are nullable. Units and descriptions are in the metadata.
    """
    columns = []
    for name, column in log_schema()["properties"].items():
        kinds = column["type"]
        if not isinstance(kinds, list):
            kinds = [kinds]
        notes = {key: column[key] for key in ("unit", "description") if key in column}
        if name != _OBJECTIVE:
            columns.append(
                pa.field(name, _ARROW[kinds[0]], nullable="null" in kinds, metadata=notes)
            )
    return pa.schema(columns)


def _objective_column() -> pa.Field:
    described = log_schema()["properties"][_OBJECTIVE]
    notes = {"description": described["description"]}
    return pa.field(_OBJECTIVE, pa.map_(pa.string(), pa.float64()), nullable=True, metadata=notes)


def row(telemetry: Telemetry, line: int, purpose: str) -> dict[str, Any]:
    """Return the row of one step, as `log_schema` describes it.

    Args:
        telemetry: Telemetry of the step.
        line: Number of the line of the lineage.
        purpose: Purpose of the step in the ledger, such as "main" or "verify".
    """
    schema = log_schema()["properties"]
    values: dict[str, Any] = {"line": line, "purpose": purpose}
    names = [name for name in TELEMETRY_FIELDS if name not in ("reading", _OBJECTIVE)]
    values |= {name: getattr(telemetry, name) for name in names}
    values |= {name: getattr(telemetry.reading, name) for name in _READING}
    values["stressors"] = list(telemetry.stressors)
    for name, value in values.items():
        if isinstance(value, float) and math.isnan(value) and "null" in schema[name]["type"]:
            values[name] = None
    if telemetry.objective:
        values[_OBJECTIVE] = dict(telemetry.objective)
    return values


def telemetry_of(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> list[Telemetry]:
    """Return the telemetry that rows were made of; the inverse of `row`.

    Args:
        rows: Rows as `read_telemetry` returns them, or mappings with the same names. A number may
            be None where nothing was measured, or a word: "nan", "inf".
    """
    records = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    return [
        Telemetry(
            **{name: _number(values[name]) for name in _NUMBERS},
            clip=values["clip"],
            stressors=tuple(values["stressors"]),
            reading=Reading(**{name: _number(values[name]) for name in _READING}),
            objective=_mapping(values.get(_OBJECTIVE)),
        )
        for values in records
    ]


def _number(value: Any) -> Any:
    """Return a value with None as NaN and words as numbers."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        return float(value)
    return value


def _mapping(value: Any) -> dict[str, float]:
    """Return numbers by name, from a mapping or the pairs that Arrow has read; empty for none."""
    if not isinstance(value, Mapping | Sequence):
        return {}  # None, or the NaN that pandas puts for it
    return {str(name): _number(one) for name, one in dict(value).items()}


class TelemetryLog:
    """Log of telemetry in a folder of Parquet parts.

    Args:
        folder: Folder of the parts. It is made if it does not exist; an existing one is continued
            after its last part.
        part_rows: Number of rows kept in memory before a part is written.
    """

    def __init__(self, folder: Path, part_rows: int = 2000) -> None:
        self._folder = folder
        self._part_rows = part_rows
        folder.mkdir(parents=True, exist_ok=True)
        self._rows: list[dict[str, Any]] = []
        numbers = (int(p.stem.removeprefix("part-")) for p in folder.glob("part-*.parquet"))
        self._next = 1 + max(numbers, default=-1)

    @property
    def written(self) -> bool:
        """True if the folder holds a part."""
        return self._next > 0

    @property
    def parts(self) -> int:
        """The number of parts in the folder."""
        return self._next

    def append(
        self, telemetry: Iterable[Telemetry], *, line: int = 0, purpose: str = "main"
    ) -> None:
        """Add steps; write a part when there are `part_rows` of them.

        Args:
            telemetry: Telemetry of the steps, in order.
            line: Number of the line of the lineage.
            purpose: Purpose of the steps in the ledger.
        """
        self._rows.extend(row(t, line, purpose) for t in telemetry)
        if len(self._rows) >= self._part_rows:
            self.flush()

    def flush(self) -> None:
        """Write the rows in memory as a part."""
        if not self._rows:
            return
        path = self._folder / f"part-{self._next:05d}.parquet"
        schema = arrow_schema()
        if any(_OBJECTIVE in values for values in self._rows):
            schema = schema.append(_objective_column())
        table = pa.Table.from_pylist(self._rows, schema=schema)
        # An open file, not a path: pyarrow takes a path with a colon for an address.
        with replacing(path) as temporary, temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
        self._next += 1
        self._rows = []


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a part, or the named columns of it.

    Raises:
        OSError, pa.ArrowException: The file is torn or cannot be read.
    """
    names = None if columns is None else list(columns)
    with path.open("rb") as file:  # not a path: pyarrow takes one with a colon for an address
        return pq.read_table(file, columns=names)


def read_telemetry(folder: str | Path, *, kept_only: bool = False) -> pd.DataFrame:
    """Return all rows in a run's folder, in the order in which they were written.

    Args:
        folder: Folder of a run, or of parts alone.
        kept_only: True for the history alone, without steps that a rewind left behind or a kill has
            lost.

    Raises:
        UserError: The folder holds no telemetry.
    """
    folder = Path(folder)
    within = folder / "telemetry"
    parts = sorted((within if within.is_dir() else folder).glob("part-*.parquet"))
    if not parts:
        raise UserError(
            f"expected telemetry under {folder}, found no part-*.parquet; give the folder of a run"
        )
    tables = [read_part(part) for part in parts]
    rows: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
    if not kept_only:
        return rows
    main = rows[rows["purpose"] == "main"]
    last = last_kept(main, read_lines(folder / "lines.jsonl"))
    kept: pd.DataFrame = main[main["step"] <= main["line"].map(last)].reset_index(drop=True)
    return kept
