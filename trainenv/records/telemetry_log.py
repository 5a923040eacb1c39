"""Telemetry as Parquet, following `configs/log_schema.json`.

A folder of parts, each written whole and renamed into place: whatever stops the process, the parts
that are there are whole.
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


@cache
def log_schema() -> Mapping[str, Any]:
    """The JSON schema of a row."""
    schema: Mapping[str, Any] = json.loads(
        (configs_folder() / "log_schema.json").read_text(encoding="utf-8")
    )
    return schema


@cache
def arrow_schema() -> pa.Schema:
    """The same as an Arrow schema; fields that may be unmeasured are nullable, units and descriptions are in the metadata."""
    columns = []
    for name, column in log_schema()["properties"].items():
        kinds = column["type"] if isinstance(column["type"], list) else [column["type"]]
        notes = {key: column[key] for key in ("unit", "description") if key in column}
        columns.append(pa.field(name, _ARROW[kinds[0]], nullable="null" in kinds, metadata=notes))
    return pa.schema(columns)


def row(telemetry: Telemetry, line: int, purpose: str) -> dict[str, Any]:
    """The row of one step, as `log_schema` describes it."""
    schema = log_schema()["properties"]
    values: dict[str, Any] = {"line": line, "purpose": purpose}
    values |= {name: getattr(telemetry, name) for name in TELEMETRY_FIELDS if name != "reading"}
    values |= {name: getattr(telemetry.reading, name) for name in _READING}
    values["stressors"] = list(telemetry.stressors)
    for name, value in values.items():
        if isinstance(value, float) and math.isnan(value) and "null" in schema[name]["type"]:
            values[name] = None
    return values


def telemetry_of(rows: pd.DataFrame) -> list[Telemetry]:
    """Rows as `read_telemetry` gives them, as the telemetry that they were made of."""
    found = []
    for values in rows.to_dict("records"):
        reading = Reading(**{name: values[name] for name in _READING})
        named = {
            name: values[name] for name in TELEMETRY_FIELDS if name not in ("reading", "stressors")
        }
        found.append(Telemetry(**named, stressors=tuple(values["stressors"]), reading=reading))
    return found


class TelemetryLog:
    """Appends telemetry to a folder of Parquet parts.

    Args:
        folder: made if it does not exist; an existing one is continued after its last part.
        part_rows: rows kept in memory before a part is written.
    """

    def __init__(self, folder: Path, part_rows: int = 2000) -> None:
        self._folder = folder
        self._part_rows = part_rows
        folder.mkdir(parents=True, exist_ok=True)
        self._rows: list[dict[str, Any]] = []
        self._next = 1 + max(
            (int(p.stem.removeprefix("part-")) for p in folder.glob("part-*.parquet")), default=-1
        )

    @property
    def written(self) -> bool:
        """Whether the folder has any steps on record."""
        return self._next > 0

    def append(
        self, telemetry: Iterable[Telemetry], *, line: int = 0, purpose: str = "main"
    ) -> None:
        """Remember steps, writing a part whenever there are enough."""
        self._rows.extend(row(t, line, purpose) for t in telemetry)
        if len(self._rows) >= self._part_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is remembered as a part."""
        if not self._rows:
            return
        path = self._folder / f"part-{self._next:05d}.parquet"
        temporary = path.with_suffix(".tmp")
        with temporary.open(
            "wb"
        ) as file:  # not a path: pyarrow takes one with a colon for an address
            pq.write_table(
                pa.Table.from_pylist(self._rows, schema=arrow_schema()), file, compression="zstd"
            )
        temporary.replace(path)
        self._next += 1
        self._rows = []


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A part, or the named columns of it.

    Raises:
        OSError, pa.ArrowException: it is torn or can't be read.
    """
    with path.open("rb") as file:  # not a path: pyarrow takes one with a colon for an address
        return pq.read_table(file, columns=None if columns is None else list(columns))


def read_telemetry(folder: str | Path, *, kept_only: bool = False) -> pd.DataFrame:
    """All rows below a run's folder, in the order they were written.

    Args:
        folder: a run's folder, or one of bare parts.
        kept_only: only what is history: no step that a later line went back behind, none that was
            lost with its process.
    """
    folder = Path(folder)
    parts = sorted(
        (folder / "telemetry" if (folder / "telemetry").is_dir() else folder).glob("part-*.parquet")
    )
    if not parts:
        raise UserError(
            f"expected telemetry under {folder}, found no part-*.parquet; give the folder of a run"
        )
    rows: pd.DataFrame = pa.concat_tables([read_part(part) for part in parts]).to_pandas()
    if not kept_only:
        return rows
    main = rows[rows["purpose"] == "main"]
    last = last_kept(main, read_lines(folder / "lines.jsonl"))
    kept: pd.DataFrame = main[main["step"] <= main["line"].map(last)].reset_index(drop=True)
    return kept
