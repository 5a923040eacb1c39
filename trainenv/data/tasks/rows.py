"""Rows of data sets with tasks: from JSON lines, from parquet, or from the Hugging Face hub.

A local copy is one file, or a folder whose file names have the name of the split in them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

from trainenv.data.documents import files_below
from trainenv.tools.optional import require
from trainenv.tools.paths import expanded
from trainenv.types import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

Row = Mapping[str, Any]


def local_rows(path: Path, split: str) -> Iterator[Row]:
    """Yield the rows of a local copy.

    Args:
        path: File, or folder with files of several splits.
        split: Name of the split, which is part of the names of its files; a single file has all.

    Raises:
        UserError: There is no such file, or it can't be read.
    """
    path = expanded(path)
    for file in _files(path, split):
        yield from _rows(file)


def hub_rows(repository: str, config: str | None, split: str) -> Iterator[Row]:
    """Yield the rows of a data set on the hub, in its own order.

    Raises:
        UserError: The package `datasets` is missing, or the data set can't be read.
    """
    require("datasets", f"reading {repository}")
    import datasets

    try:
        yield from datasets.load_dataset(repository, config, split=split, streaming=True)
    # Errors of network, HTTP, cache and format have many classes in three libraries.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"expected to read {repository} from the Hugging Face hub, found {reason}; connect to "
            "the network, or give the path of a local copy (JSON lines or parquet)"
        ) from error


def is_single_file(path: Path) -> bool:
    """Tell if a local copy is one file, which has no splits."""
    return isfile(expanded(path))


def _files(path: Path, split: str) -> list[Path]:
    if isfile(path):
        return [path]
    if not isdir(path):
        raise UserError(
            f"expected a file or a folder with tasks at {path}, found neither; give a path that "
            "exists"
        )
    names, _ = files_below(path)
    found = [path / name for name in names if name.endswith(SUFFIXES) and split in Path(name).name]
    if not found:
        raise UserError(
            f"expected a file with {split} in its name, ending in {', '.join(SUFFIXES)}, below "
            f"{path}, found none; rename the file of that split"
        )
    return found


def _rows(file: Path) -> Iterator[Row]:
    try:
        if file.suffix == ".parquet":
            yield from _parquet(file)
            return
        with file.open("rb") as raw, ExitStack() as stack:
            lines: Iterable[bytes] = raw
            if file.suffix == ".gz":
                lines = stack.enter_context(gzip.open(raw, "rb"))
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _row(line, f"line {number} of {file}")
    # Broken JSON, UTF-8 and parquet raise ValueError; RecursionError is deeply nested JSON.
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"expected {file} to be whole and readable, found {reason}; copy it again"
        ) from None


def _row(line: bytes, place: str) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise UserError(
            f"expected a JSON object in {place}, found {type(row).__name__}; "
            "write one task or sample a line"
        )
    return row


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow.parquet

    # pyarrow gets an open file, because it takes a path with a colon for an address.
    with file.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as table:
        for batch in table.iter_batches(batch_size=64):
            yield from batch.to_pylist()
