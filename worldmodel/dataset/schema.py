"""Parquet files of a data set, with the columns of `configs/branches_schema.json`; checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainenv.config.presets import configs_folder
from trainenv.records.telemetry_log import arrow_schema as telemetry_schema
from trainenv.types import UserError

VERSION = "trainenv branches 1"
TABLES = ("trunks", "snapshots", "branches", "trunk_steps", "branch_steps")
REMEDY = "remove the folder of this trunk and build again, which makes it anew"
_TELEMETRY = ("trunk_steps", "branch_steps")
_ARROW = {
    "number": pa.float64(),
    "integer": pa.int64(),
    "string": pa.string(),
    "boolean": pa.bool_(),
}


@cache
def branches_schema() -> Mapping[str, Any]:
    """Return the JSON schema; `$defs` describes a row of each table."""
    path = configs_folder() / "branches_schema.json"
    schema: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


@cache
def arrow_schema(table: str) -> pa.Schema:
    """Return the columns of a table; those that may be unmeasured are nullable.

    Descriptions stay in the JSON file, because there are many small shards.
    """
    fields = []
    for name, column in branches_schema()["$defs"][table]["properties"].items():
        kind, nullable = _kind(column)
        if kind == "array":
            item, item_nullable = _kind(column["items"])
            arrow = pa.list_(pa.field("element", _ARROW[item], nullable=item_nullable))
        else:
            arrow = _ARROW[kind]
        fields.append(pa.field(name, arrow, nullable=nullable))
    if table in _TELEMETRY:
        fields += [field.remove_metadata() for field in telemetry_schema()]
    return pa.schema(fields, metadata={"format": VERSION, "table": table})


def write(rows: Sequence[Mapping[str, Any]], table: str, path: Path) -> None:
    """Write rows as a Parquet file. The same rows give the same bytes."""
    whole = pa.Table.from_pylist(list(rows), schema=arrow_schema(table))
    floats = [field.name for field in whole.schema if field.type == pa.float64()]
    # Telemetry is float32 in float64 columns: split into bytes, half of it is zero.
    strings = [field.name for field in whole.schema if field.name not in floats]
    with path.open("wb") as file:  # not a path: pyarrow takes one with a colon for an address
        pq.write_table(
            whole,
            file,
            compression="zstd",
            use_dictionary=strings,
            use_byte_stream_split=floats,
            write_page_checksum=True,
        )


def read(path: Path, table: str) -> pa.Table:
    """Read a Parquet file that `write` has written, and check it.

    Raises:
        UserError: The file is missing, torn or damaged, or is not of this table and version.
    """
    try:
        with path.open("rb") as file:
            found = pq.read_table(file, page_checksum_verification=True, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"expected the table {table} in {path}, found a file that can't be read ({reason}); "
            f"{REMEDY}"
        ) from None
    expected = arrow_schema(table)
    metadata = found.schema.metadata or {}
    version = metadata.get(b"format", b"another format").decode(errors="replace")
    if version != VERSION:
        raise UserError(
            f"expected {VERSION!r} in {path}, found {version!r}; build the data set anew, or read "
            "it with its own version"
        )
    if not found.schema.equals(expected):
        raise UserError(
            f"expected the columns of table {table} in {path}, found "
            f"{_difference(found.schema, expected)}; {REMEDY}"
        )
    for name, column in branches_schema()["$defs"][table]["properties"].items():
        if "enum" in column:
            wrong = set(pc.unique(found[name]).to_pylist()) - set(column["enum"])
            if wrong:
                raise UserError(
                    f"{name} in {path} must be one of {', '.join(column['enum'])}, found "
                    f"{sorted(map(str, wrong))[0]!r}; {REMEDY}"
                )
    for field in found.schema:
        if not field.nullable and found[field.name].null_count:
            raise UserError(
                f"expected a value in every row of {field.name} in {path}, found null; {REMEDY}"
            )
    return found


def _kind(column: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the JSON type of a column, and whether it may be null."""
    kinds = column["type"]
    if not isinstance(kinds, list):
        return kinds, False
    return kinds[0], "null" in kinds


def _difference(found: pa.Schema, expected: pa.Schema) -> str:
    for name in expected.names:
        if name not in found.names:
            return f"no {name}"
        if found.field(name).type != expected.field(name).type:
            return f"{name} of type {found.field(name).type}, not {expected.field(name).type}"
    for name in found.names:
        if name not in expected.names:
            return f"also {name}"
    return "them in another order, or nullable where they must not be"
