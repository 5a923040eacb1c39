"""The folder of a data set: one shard a trunk, each there as a whole or not at all.

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
from trainenv.types import UserError
from trainenv.worldmodel.dataset import schema
from trainenv.worldmodel.dataset.design import Design
from trainenv.worldmodel.dataset.trunks import Trunk

_HEADER = "dataset.json"


class Shards:
    """Shards by the name of their trunk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begin(cls, folder: Path, design: Design) -> Shards:
        """A new folder, or one that was begun with the same design.

        Raises:
            UserError: the folder holds something else, or was begun with another design.
        """
        shards = cls(folder)
        if (folder / _HEADER).is_file():
            if shards.design() != design:
                raise UserError(
                    f"the data set in {folder} was begun with another design, {shards.design()}; give another folder"
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
        temporary = folder / f".{_HEADER}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / _HEADER)
        return shards

    def design(self) -> Design:
        """What the data set was begun with.

        Raises:
            UserError: there is no data set, or one of another version.
        """
        path = self.folder / _HEADER
        try:
            header = json.loads(path.read_text(encoding="utf-8"))
            version = header["format"]
            values = header["design"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"expected a data set of branches in {self.folder}, found no {_HEADER} of one; give its folder"
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
        """Trunks whose shard is there, sorted.

        Raises:
            UserError: something else lies among the shards.
        """
        folder = self.folder / "shards"
        found = (
            sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
            if folder.is_dir()
            else []
        )
        for name in found:
            if not (name[:1] == "t" and name[1:].isdigit()) or not (folder / name).is_dir():
                raise UserError(
                    f"expected only shards (t00000, …) in {folder}, found {name}; move it away"
                )
        return found

    def table(self, trunk: str, table: str) -> pa.Table:
        """A table of a shard, checked.

        Raises:
            UserError: the file is missing, torn or foreign.
        """
        return schema.read(self.folder / "shards" / trunk / f"{table}.parquet", table)

    def holds(self, trunk: Trunk) -> bool:
        """Whether the shard of this very trunk is there.

        Raises:
            UserError: there is one of the same name and another recipe.
        """
        if not (self.folder / "shards" / trunk.name).is_dir():
            return False
        recipe = self.table(trunk.name, "trunks")["recipe"][0].as_py()
        if recipe != json.dumps(trunk.to_json(), sort_keys=True):
            raise UserError(
                f"{self.folder} holds another trunk {trunk.name}; go on with the seed it was begun with, or elsewhere"
            )
        return True

    def write(self, trunk: str, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write a shard. Whatever stops this, the shard is whole or not there."""
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
            if not place.is_dir():  # else another process has made the same shard
                raise
        portable.sync_folder(place.parent)

    def sweep(self, trunk: str) -> None:
        """Remove what an interrupted write of this shard has left."""
        for left in (self.folder / "shards").glob(f".{trunk}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
