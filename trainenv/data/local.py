"""Local copies of hub corpora: parquet, JSON lines (plain or gzip) and plain text, told apart by their names."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from os.path import isdir, isfile
from pathlib import Path

from trainenv.data.documents import Documents, LeftOut, files_below
from trainenv.types import UserError

SUFFIXES = {
    "parquet": (".parquet",),
    "json": (".json.gz", ".jsonl.gz", ".json", ".jsonl"),
    "text": (".txt", ".raw", ".tokens"),
}
NAMING = "train-00000-of-00001.parquet, c4-train.00000-of-01024.json.gz or wiki.train.raw.txt"


def find(path: Path, config: str) -> tuple[list[Path], list[Path], list[LeftOut]]:
    """The training and the validation files of the copy at `path`, in order, and what could not be looked into.

    A single file is all training. Linked folders are followed.

    Args:
        path: a file or a folder.
        config: the hub's name of the wanted part: the folder of that name is taken where there is
            one.

    Raises:
        UserError: nothing there, or no file named like a training split.
    """
    if isfile(path):
        return [path], [], []
    if not isdir(path):
        raise UserError(
            f"expected a local copy at corpus.path {path}, found nothing; give a path that exists or leave it out"
        )
    root = path / config if (path / config).is_dir() else path
    names, others = files_below(root)
    files = sorted(root / name for name in names)
    left_out = [one for one in others if one.why != "hidden"]
    for suffixes in SUFFIXES.values():
        same = [file for file in files if file.name.endswith(suffixes)]
        train = [file for file in same if "train" in file.name]
        if train:
            return train, [file for file in same if "valid" in file.name], left_out
    found = (
        ", ".join([*(file.name for file in files[:3]), *(str(one) for one in left_out[:3])])
        or "an empty folder"
    )
    raise UserError(
        f"expected training files named like {NAMING} below {root}, found {found}; rename them so"
    )


def documents(files: list[Path], left_out: Sequence[LeftOut] = ()) -> Documents:
    """A shard a file. The rows' `text` (a line's text, in plain text files) are the documents."""
    sizes = tuple(file.stat().st_size for file in files)
    return Documents(
        tuple(file.name for file in files), partial(_rows, tuple(files)), tuple(left_out), sizes
    )


def _rows(files: tuple[Path, ...], shard: int) -> Iterator[bytes]:
    file = files[shard]
    reader = next(
        (READERS[kind] for kind, suffixes in SUFFIXES.items() if file.name.endswith(suffixes)),
        _text,
    )
    try:
        yield from reader(file)
    except UserError:
        raise
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        TypeError,
    ) as error:  # broken JSON, UTF-8 and parquet are ValueErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"expected {file} to be whole and readable, found {reason}; copy it again"
        ) from None


def _parquet(file: Path) -> Iterator[bytes]:
    import pyarrow.parquet

    # An open file, no path: pyarrow takes one with a colon for an address.
    with file.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as table:
        _check_columns(file, table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=4096, columns=["text"]):
            for row in batch.column(0).to_pylist():
                yield (row or "").encode()


def _json(file: Path) -> Iterator[bytes]:
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
        for line in lines:
            row = json.loads(line)
            _check_columns(file, row if isinstance(row, dict) else ())
            yield str(row["text"] or "").encode(
                errors="replace"
            )  # JSON can spell half a surrogate pair


def _text(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        for line in lines:
            line.decode()  # raises where it is not UTF-8
            yield line


def _check_columns(file: Path, found: Collection[str]) -> None:
    if "text" not in found:
        raise UserError(
            f"expected a column `text` in {file}, found {', '.join(found) or 'none'}; rename the column that holds the text"
        )


READERS: dict[str, Callable[[Path], Iterator[bytes]]] = {
    "parquet": _parquet,
    "json": _json,
    "text": _text,
}
