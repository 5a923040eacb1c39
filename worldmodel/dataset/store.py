"""The folder of a data set, with one shard for each trunk, written whole or not at all.

| file | holds |
|---|---|
| `dataset.json` | the format and the design, the same for every trunk |
| `corpora/*.txt` | text that trunks train on |
| `shards/t00042/TABLE.parquet` | the tables of a trunk, see `configs/branches_schema.json` |
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from trainenv.tools import portable
from trainenv.tools.atomic_files import write_file
from trainenv.types import UserError
from trainenv.worldmodel.dataset import schema
from trainenv.worldmodel.dataset.design import Design
from trainenv.worldmodel.dataset.trunks import Trunk

_HEADER = "dataset.json"


class Shards:
    """Shards of a data set, by the names of their trunks.

    Args:
        folder: Folder of the data set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begin(cls, folder: Path, design: Design) -> Shards:
        """Make a new folder, or open one that was made with the same design.

        Raises:
            UserError: The folder holds something else, or was made with another design.
        """
        shards = cls(folder)
        if (folder / _HEADER).is_file():
            if shards.design() != design:
                raise UserError(
                    f"the data set in {folder} was begun with another design, {shards.design()}; "
                    "give another folder"
                )
            return shards
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no data set; give another folder")
        try:
            (folder / "shards").mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"{folder} must be a folder to build in, found: {error.strerror}; give another"
            ) from None
        header = {"format": schema.VERSION, "design": design.to_json()}
        write_file(folder / _HEADER, json.dumps(header, indent=2) + "\n")
        return shards

    def design(self) -> Design:
        """Return the design of the data set.

        Raises:
            UserError: There is no data set, or one of another version.
        """
        path = self.folder / _HEADER
        try:
            header = json.loads(path.read_text(encoding="utf-8"))
            version = header["format"]
            values = header["design"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"expected a data set of branches in {self.folder}, found no {_HEADER} of one; "
                "give its folder"
            ) from None
        if version != schema.VERSION:
            raise UserError(
                f"expected {schema.VERSION!r} in {path}, found {version!r}; build the data set anew"
            )
        try:
            return Design.from_json(values)
        except (KeyError, TypeError):
            raise UserError(
                f"expected a design in {path}, found something else; build the data set anew"
            ) from None

    def names(self) -> list[str]:
        """Return the names of the trunks that have a shard, sorted.

        Raises:
            UserError: There is something else among the shards.
        """
        folder = self.folder / "shards"
        if not folder.is_dir():
            return []
        found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        for name in found:
            if not (name[:1] == "t" and name[1:].isdigit()) or not (folder / name).is_dir():
                raise UserError(
                    f"expected only shards (t00000, …) in {folder}, found {name}; move it away"
                )
        return found

    def table(self, trunk: str, table: str) -> pa.Table:
        """Read a table of a shard, and check it.

        Raises:
            UserError: The file is missing, torn or foreign.
        """
        return schema.read(self.folder / "shards" / trunk / f"{table}.parquet", table)

    def holds(self, trunk: Trunk) -> bool:
        """Tell whether the shard of a trunk exists.

        Raises:
            UserError: There is a shard of another trunk with the same name.
        """
        if not (self.folder / "shards" / trunk.name).is_dir():
            return False
        recipe = self.table(trunk.name, "trunks")["recipe"][0].as_py()
        if recipe != json.dumps(trunk.to_json(), sort_keys=True):
            raise UserError(
                f"{self.folder} holds another trunk {trunk.name}; sample trunks with the seed that "
                "it was begun with, or give another folder"
            )
        return True

    def write(self, trunk: str, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write a shard, whole or not at all."""
        place = self.folder / "shards" / trunk
        temporary = place.with_name(f".{trunk}.{os.getpid()}.tmp")
        self.sweep(trunk)
        temporary.mkdir()
        for table in schema.TABLES:
            path = temporary / f"{table}.parquet"
            schema.write(tables[table], table, path)
            portable.sync_file(path)
        portable.sync_folder(temporary)
        try:
            temporary.rename(place)
        except OSError:
            shutil.rmtree(temporary)
            if not place.is_dir():  # otherwise another process has made the same shard
                raise
        portable.sync_folder(place.parent)

    def sweep(self, trunk: str) -> None:
        """Remove what an interrupted write of this shard has left behind."""
        for left in (self.folder / "shards").glob(f".{trunk}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
