"""Folder of a data set of paths: one Parquet file for each group, written whole or not at all.

| file | holds |
|---|---|
| `paths.json` | format and seed |
| `corpora/*.txt` | text that runs train on |
| `groups/g00042.parquet` | one row for each run of a group, and the group in the metadata |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainenv.tools.atomic_files import write_file
from trainenv.types import UserError
from trainenv.worldmodel import features
from trainenv.worldmodel.paths.groups import Group

FORMAT = "trainenv rate paths 1"
_HEADER = "paths.json"
_GROUP = b"group"  # key of the metadata
_SCHEMA = pa.schema(
    [
        ("group", pa.int64()),
        ("run", pa.int64()),
        ("followed", pa.int64()),
        ("steps", pa.int64()),
        ("path", pa.list_(pa.float32())),
        ("schedule", pa.list_(pa.float32())),
        ("states", pa.list_(pa.float32())),
        ("levels", pa.list_(pa.float32())),
        ("end", pa.float64()),
    ]
)


class PathFiles:
    """Files of a data set, by the names of their groups.

    Args:
        folder: Folder of the data set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begin(cls, folder: Path) -> PathFiles:
        """Make a new folder, or open one that holds a data set of paths.

        Raises:
            UserError: The folder holds something else, or cannot be made.
        """
        if (folder / _HEADER).is_file():
            return cls.open(folder)
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no data set; give another folder")
        try:
            (folder / "groups").mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"{folder} must be a folder to build in, found: {error.strerror}; give another"
            ) from None
        header = {"format": FORMAT, "state": list(features.STATE)}
        write_file(folder / _HEADER, json.dumps(header, indent=1) + "\n")
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> PathFiles:
        """Open a data set.

        Raises:
            UserError: There is none, or one of another version.
        """
        try:
            header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(
                f"expected a data set of paths in {folder}, found no {_HEADER}; give its folder"
            ) from None
        if header != {"format": FORMAT, "state": list(features.STATE)}:
            raise UserError(
                f"expected {FORMAT!r} with the features of this version in {folder / _HEADER}, "
                "found others; build the data set anew"
            )
        return cls(folder)

    def holds(self, group: Group) -> bool:
        """Tell whether the file of a group exists.

        Raises:
            UserError: There is a file of another group with the same name.
        """
        path = self._path(group.name)
        if not path.is_file():
            return False
        noted = json.loads(pq.read_schema(path).metadata[_GROUP])
        if noted != json.loads(json.dumps(group.to_json())):
            raise UserError(
                f"{self.folder} holds another group {group.name}; take the seed that it was begun "
                "with, or give another folder"
            )
        return True

    def write(self, group: Group, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of a group, whole or not at all."""
        columns = {
            field.name: [np.asarray(row[field.name]).reshape(-1) for row in rows]
            if pa.types.is_list(field.type)
            else [row[field.name] for row in rows]
            for field in _SCHEMA
        }
        table = pa.table(columns, schema=_SCHEMA)
        table = table.replace_schema_metadata({_GROUP: json.dumps(group.to_json())})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_file(self._path(group.name), sink.getvalue().to_pybytes())

    def names(self) -> list[str]:
        """Return the names of the groups that have a file, sorted."""
        return sorted(path.stem for path in (self.folder / "groups").glob("g*.parquet"))

    def read(self, name: str) -> tuple[Group, pa.Table]:
        """Return a group and its rows.

        Raises:
            UserError: The file is damaged or foreign.
        """
        path = self._path(name)
        try:
            table = pq.read_table(path)
            group = Group.from_json(json.loads(table.schema.metadata[_GROUP]))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise UserError(
                f"expected the rows of a group in {path}, found {error!s:.120}; delete the file "
                "and build again"
            ) from None
        return group, table

    def _path(self, name: str) -> Path:
        return self.folder / "groups" / f"{name}.parquet"
