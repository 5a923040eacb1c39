"""Local copies of hub corpora: parquet, JSON lines (plain or gzip) and plain text.

The name of a file decides its format.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
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
    """Find the training and the validation files of the copy at `path`, and files left out.

    A single file is a training file. Links to folders are followed.

    Args:
        path: File or folder.
        config: Name of the wanted part on the hub; a folder of that name in `path` is preferred.

    Raises:
        UserError: The path does not exist, or no file is named like a training split.
    """
    if isfile(path):
        return [path], [], []
    if not isdir(path):
        raise UserError(
            f"expected a local copy at corpus.path {path}, found nothing; "
            "give a path that exists or leave it out"
        )
    root = path
    if (path / config).is_dir():
        root = path / config
    names, others = files_below(root)
    files = sorted(root / name for name in names)
    left_out = [one for one in others if one.why != "hidden"]
    for suffixes in SUFFIXES.values():
        same = [file for file in files if file.name.endswith(suffixes)]
        train = [file for file in same if "train" in file.name]
        if train:
            return train, [file for file in same if "valid" in file.name], left_out
    found = [*(file.name for file in files[:3]), *(str(one) for one in left_out[:3])]
    raise UserError(
        f"expected training files named like {NAMING} below {root}, found "
        f"{', '.join(found) or 'an empty folder'}; rename the files like that"
    )


def documents(files: list[Path], left_out: Sequence[LeftOut] = ()) -> Documents:
    """Read files as shards; each row's `text`, or each line of plain text, is a document."""
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
    # Broken JSON, UTF-8 and parquet raise ValueError.
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"expected {file} to be whole and readable, found {reason}; copy it again"
        ) from None


def _parquet(file: Path) -> Iterator[bytes]:
    import pyarrow.parquet

    # pyarrow gets an open file, because it takes a path with a colon for an address.
    with file.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as table:
        _check_columns(file, table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=4096, columns=["text"]):
            for row in batch.column(0).to_pylist():
                yield (row or "").encode()


def _json(file: Path) -> Iterator[bytes]:
    with file.open("rb") as raw, ExitStack() as stack:
        lines: Iterable[bytes] = raw
        if file.suffix == ".gz":
            lines = stack.enter_context(gzip.open(raw, "rb"))
        for line in lines:
            row = json.loads(line)
            if not isinstance(row, dict):
                row = {}
            _check_columns(file, row)
            # JSON can contain half a surrogate pair.
            yield str(row["text"] or "").encode(errors="replace")


def _text(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        for line in lines:
            line.decode()  # raises where it is not UTF-8
            yield line


def _check_columns(file: Path, found: Collection[str]) -> None:
    if "text" not in found:
        raise UserError(
            f"expected a column `text` in {file}, found {', '.join(found) or 'none'}; "
            "rename the column that holds the text"
        )


READERS: dict[str, Callable[[Path], Iterator[bytes]]] = {
    "parquet": _parquet,
    "json": _json,
    "text": _text,
}
