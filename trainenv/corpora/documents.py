"""Where text comes from: documents as UTF-8 bytes, in a fixed order, readable as often as one likes."""

from __future__ import annotations

import codecs
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import xxhash

from trainenv.types import UserError

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
_HEAD = 8192  # bytes of a file that show whether it is text


@dataclass(frozen=True)
class Documents:
    """Text in shards that are read one after the other, each from its start.

    Args:
        shards: their names, the same on every machine that has the same text.
        read: the documents of the shard at a place in `shards`, UTF-8.
    """

    shards: tuple[str, ...]
    read: Callable[[int], Iterator[bytes]]

    def __iter__(self) -> Iterator[bytes]:
        for shard in range(len(self.shards)):
            yield from self.read(shard)


@dataclass(frozen=True)
class Source:
    """The text of a corpus.

    Args:
        train: the text, or the training part of it where `validation` is given.
        validation: the source's own held-out part, or None: the text is then split here.
        streams: too long to be read as a whole.
    """

    train: Documents
    validation: Documents | None = None
    streams: bool = False


@dataclass(frozen=True)
class Survey:
    """One pass over documents: their number, their size in bytes and a 128-bit hash (xxh3) of their content."""

    count: int
    size: int
    digest: str

    @classmethod
    def of(cls, documents: Iterator[bytes]) -> Survey:
        digest, size, count = xxhash.xxh3_128(), 0, 0
        for document in documents:
            digest.update(len(document).to_bytes(8, "little"))  # so that where documents end is part of the content
            digest.update(document)
            size += len(document)
            count += 1
        return cls(count, size, digest.hexdigest())


def standard_library() -> Source:
    """Every module of Python's own standard library, a document a file, sorted; about 11 MB."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(name for name in _walk(root, _NOT_LIBRARY) if name.endswith(".py"))
    if not names:
        raise UserError(f"expected the standard library's *.py files below {root}, found none; use corpus.name: text with a path")
    return Source(Documents(tuple(names), partial(_whole_file, root, tuple(names))))


def text_files(path: Path | None) -> Source:
    """The file at `path`, or every text file below the folder there, sorted; hidden and binary files are left out.

    Raises:
        UserError: no path, nothing there, no text in it, or text that is not UTF-8.
    """
    if path is None:
        raise UserError("corpus text needs corpus.path, found none; set it to a UTF-8 text file or a folder of them")
    path = path.expanduser()
    if path.is_file():
        root, names = path.parent, [path.name]
    elif path.is_dir():
        root, names = path, sorted(name for name in _walk(path, set()) if _is_text(path / name))
    else:
        raise UserError(f"expected a text file or a folder at corpus.path {path}, found neither; give a path that exists")
    for name in names:
        _check_utf8(root / name)
    if not any((root / name).stat().st_size for name in names):
        raise UserError(
            f"expected text at corpus.path {path}, found {len(names)} file(s) and no text in them; give one with text"
        )
    return Source(Documents(tuple(names), partial(_whole_file, root, tuple(names))))


def _walk(root: Path, leave_out: set[str]) -> Iterator[str]:
    """Names of the regular files below `root`, relative to it, with forward slashes; hidden ones are left out."""
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in leave_out and not name.startswith(".")]
        for name in files:
            file = Path(folder) / name
            if not name.startswith(".") and file.is_file():
                yield file.relative_to(root).as_posix()


def _whole_file(root: Path, names: tuple[str, ...], shard: int) -> Iterator[bytes]:
    """The file as one document; an empty one is none."""
    if data := (root / names[shard]).read_bytes():
        yield data


def _is_text(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    # UTF-16 is full of zero bytes too: it is text, and is refused by name rather than left out in silence.
    return b"\0" not in head or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _check_utf8(file: Path) -> None:
    try:
        file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"expected UTF-8 text in {file}, found byte 0x{error.object[error.start]:02x} at position {error.start}; "
            "convert the file (for example with iconv -t UTF-8) or move it away"
        ) from None
