"""Where text comes from: documents as UTF-8 bytes, in a fixed order, readable as often as one likes."""

from __future__ import annotations

import codecs
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import xxhash

from trainenv.tools.paths import expanded
from trainenv.types import UserError

_NOT_LIBRARY = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "__pycache__",
}
_HEAD = 8192  # bytes of a file that show whether it is text
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tgz", ".tar")
_NAMED = 5  # of what is left out, where it is told


class LeftOut(NamedTuple):
    """A file or a folder that is not taken."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name if self.name.isprintable() else ascii(self.name)} ({self.why})"


@dataclass(frozen=True)
class Documents:
    """Text in shards that are read one after the other, each from its start.

    Args:
        shards: their names, the same on every machine that has the same text.
        read: the documents of the shard at a place in `shards`, UTF-8.
        left_out: what lies there and is not part of the text: each name, and why.
        sizes: bytes of the files that the shards are, where they are files.
    """

    shards: tuple[str, ...]
    read: Callable[[int], Iterator[bytes]]
    left_out: tuple[LeftOut, ...] = ()
    sizes: tuple[int, ...] = ()

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
        digest = xxhash.xxh3_128()
        size = 0
        count = 0
        for document in documents:
            digest.update(
                len(document).to_bytes(8, "little")
            )  # so that where documents end is part of the content
            digest.update(document)
            size += len(document)
            count += 1
        return cls(count, size, digest.hexdigest())


def standard_library() -> Source:
    """Every module of Python's own standard library, a document a file, sorted; about 11 MB."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(name for name in _walk(root, _NOT_LIBRARY) if name.endswith(".py"))
    if not names:
        raise UserError(
            f"expected the standard library's *.py files below {root}, found none; use corpus.name: text with a path"
        )
    return Source(Documents(tuple(names), partial(_whole_file, root, tuple(names))))


def text_files(path: Path | None) -> Source:
    """The file at `path`, or every text file below the folder there, sorted; linked folders are followed.

    Hidden, binary, compressed and unreadable files are left out; `left_out` names them.

    Raises:
        UserError: no path, nothing there, no text in it, or text that is not UTF-8.
    """
    if path is None:
        raise UserError(
            "corpus text needs corpus.path, found none; set it to a UTF-8 text file or a folder of them"
        )
    path = expanded(path)
    left_out: list[LeftOut] = []
    if os.path.isfile(path):
        root = path.parent
        names = [path.name]
        _check_readable(path)
    elif os.path.isdir(path):
        root, (there, left_out) = path, files_below(path)
        reasons = {name: _why_not(path / name) for name in there}
        names = [name for name, why in reasons.items() if why is None]
        left_out += [LeftOut(name, why) for name, why in reasons.items() if why is not None]
    else:
        raise UserError(
            f"expected a text file or a folder at corpus.path {path}, found neither; give a path that exists"
        )
    for name in names:
        _check_utf8(root / name)
    if not any((root / name).stat().st_size for name in names):
        others = f" (left out: {listed(left_out)})" if left_out else ""
        raise UserError(
            f"expected text at corpus.path {path}, found {len(names)} file(s) and no text in them{others}; give one with text"
        )
    return Source(
        Documents(tuple(names), partial(_whole_file, root, tuple(names)), tuple(left_out))
    )


def listed(left_out: Sequence[LeftOut]) -> str:
    """The first few of them, and that there are more."""
    named = ", ".join(str(one) for one in left_out[:_NAMED])
    return f"{named} and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else named


def files_below(root: Path) -> tuple[list[str], list[LeftOut]]:
    """Names of the regular files below `root`, sorted, relative to it, with forward slashes; and what else is there.

    Each folder is read once, under its own name rather than a link's, whatever links there are:
    links may form a circle.
    """
    names: list[str] = []
    left_out: list[LeftOut] = []
    read: set[tuple[int, int]] = set()
    waiting = [os.fspath(root)]

    def name_of(path: str) -> str:
        return Path(os.path.relpath(path, root)).as_posix()

    def refused(error: OSError) -> None:
        left_out.append(LeftOut(name_of(error.filename), f"unreadable: {error.strerror}"))

    while (
        waiting
    ):  # the folders themselves first, then what is linked into them, then what is linked into that
        linked: list[str] = []
        for start in waiting:
            for folder, below, files in os.walk(start, onerror=refused):
                if (identity := _identity(folder)) in read:
                    left_out.append(LeftOut(name_of(folder), "a link to what is read already"))
                    below.clear()
                    continue
                read.add(identity)
                left_out += [
                    LeftOut(name_of(os.path.join(folder, name)), "hidden")
                    for name in below
                    if name.startswith(".")
                ]
                seen = sorted(name for name in below if not name.startswith("."))
                below[:] = [name for name in seen if not os.path.islink(os.path.join(folder, name))]
                linked += [os.path.join(folder, name) for name in seen if name not in below]
                for name in files:
                    path = os.path.join(folder, name)
                    if why := "hidden" if name.startswith(".") else _no_file(path):
                        left_out.append(LeftOut(name_of(path), why))
                    else:
                        names.append(name_of(path))
        waiting = linked
    return sorted(names), sorted(left_out)


def _identity(folder: str) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _no_file(path: str) -> str | None:
    """What it is, if no regular file and no link to one."""
    if os.path.isfile(path):
        return None
    return (
        "a broken link" if os.path.islink(path) and not os.path.exists(path) else "no regular file"
    )


def _why_not(file: Path) -> str | None:
    """Why a file is left out; None where it is taken."""
    try:
        if _is_text(file):
            return None
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return "compressed" if file.suffix in _COMPRESSED else "binary"


def _check_readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise UserError(
            f"{file} can't be read: {error.strerror}; give a file that may be read"
        ) from None


def _walk(root: Path, leave_out: set[str]) -> Iterator[str]:
    """Names of the regular files below `root`, relative to it, with forward slashes; no hidden ones, no linked folders."""
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
    # UTF-16 is full of zero bytes too: it is text, and is refused by name rather than left out in
    # silence.
    return b"\0" not in head or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _check_utf8(file: Path) -> None:
    try:
        file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"expected UTF-8 text in {file}, found byte 0x{error.object[error.start]:02x} at position {error.start}; "
            "convert the file (for example with iconv -t UTF-8) or move it away"
        ) from None
