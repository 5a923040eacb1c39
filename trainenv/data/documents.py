"""Documents: text as UTF-8 bytes in a fixed order, which can be read any number of times."""

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
_NAMED = 5  # names of skipped files that a message lists


class LeftOut(NamedTuple):
    """A file or a folder that is not part of the text, with the reason."""

    name: str
    why: str

    def __str__(self) -> str:
        name = self.name
        if not name.isprintable():
            name = ascii(name)
        return f"{name} ({self.why})"


@dataclass(frozen=True)
class Documents:
    """Text in shards that are read one after the other, each from its start.

    Args:
        shards: Names of the shards, the same on every machine that has the same text.
        read: Function that yields the documents, UTF-8, of the shard at an index of `shards`.
        left_out: Files and folders that are not part of the text, with the reasons.
        sizes: Size of each shard's file, bytes; empty where shards are not files.
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
        train: All text, or its training part where `validation` is given.
        validation: Validation part that the source provides; None where the text has to be split.
        streams: True for text that is too long to be read as a whole.
    """

    train: Documents
    validation: Documents | None = None
    streams: bool = False


@dataclass(frozen=True)
class Survey:
    """Result of one pass over documents.

    Attributes:
        count: Number of documents.
        size: Size of all documents, bytes.
        digest: The xxh3-128 of their content and lengths, 32 hex digits.
    """

    count: int
    size: int
    digest: str

    @classmethod
    def of(cls, documents: Iterator[bytes]) -> Survey:
        digest = xxhash.xxh3_128()
        size = 0
        count = 0
        for document in documents:
            # The lengths make the borders between documents part of the digest.
            digest.update(len(document).to_bytes(8, "little"))
            digest.update(document)
            size += len(document)
            count += 1
        return cls(count, size, digest.hexdigest())


def standard_library() -> Source:
    """Read Python's standard library: one document a module, sorted; about 11 MB."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(name for name in _walk(root, _NOT_LIBRARY) if name.endswith(".py"))
    if not names:
        raise UserError(
            f"expected the standard library's *.py files below {root}, found none; "
            "use corpus.name: text with a path"
        )
    return Source(Documents(tuple(names), partial(_whole_file, root, tuple(names))))


def text_files(path: Path | None) -> Source:
    """Read the file at `path`, or all text files below a folder, sorted; folder links are followed.

    Hidden, binary, compressed and unreadable files are left out; `left_out` names them.

    Raises:
        UserError: The path is missing or does not exist, has no text, or has text that is not
            UTF-8.
    """
    if path is None:
        raise UserError(
            "corpus text needs corpus.path, found none; set it to a UTF-8 text file or a folder "
            "of them"
        )
    path = expanded(path)
    left_out: list[LeftOut] = []
    if os.path.isfile(path):
        root = path.parent
        names = [path.name]
        _check_readable(path)
    elif os.path.isdir(path):
        root = path
        there, left_out = files_below(path)
        reasons = {name: _reason_to_skip(path / name) for name in there}
        names = [name for name, why in reasons.items() if why is None]
        left_out += [LeftOut(name, why) for name, why in reasons.items() if why is not None]
    else:
        raise UserError(
            f"expected a text file or a folder at corpus.path {path}, found neither; "
            "give a path that exists"
        )
    for name in names:
        _check_utf8(root / name)
    if not any((root / name).stat().st_size for name in names):
        others = ""
        if left_out:
            others = f" (left out: {listed(left_out)})"
        raise UserError(
            f"expected text at corpus.path {path}, found {len(names)} file(s) and no text in "
            f"them{others}; give one with text"
        )
    return Source(
        Documents(tuple(names), partial(_whole_file, root, tuple(names)), tuple(left_out))
    )


def listed(left_out: Sequence[LeftOut]) -> str:
    """List the first few skipped files and the number of others."""
    named = ", ".join(str(one) for one in left_out[:_NAMED])
    if len(left_out) <= _NAMED:
        return named
    return f"{named} and {len(left_out) - _NAMED} more"


def files_below(root: Path) -> tuple[list[str], list[LeftOut]]:
    """List the regular files below `root`, and everything else that is there.

    The names are sorted, relative to `root`, with forward slashes. Each folder is read once, under
    its real name if possible: links may form a circle.
    """
    names: list[str] = []
    left_out: list[LeftOut] = []
    read: set[tuple[int, int]] = set()
    waiting = [os.fspath(root)]

    def name_of(path: str) -> str:
        return Path(os.path.relpath(path, root)).as_posix()

    def refused(error: OSError) -> None:
        left_out.append(LeftOut(name_of(error.filename), f"unreadable: {error.strerror}"))

    # Real folders come first, then the folders linked into them, then those linked into these.
    while waiting:
        linked: list[str] = []
        for start in waiting:
            for folder, below, files in os.walk(start, onerror=refused):
                if (identity := _identity(folder)) in read:
                    left_out.append(LeftOut(name_of(folder), "a link to a folder read already"))
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
                    if name.startswith("."):
                        left_out.append(LeftOut(name_of(path), "hidden"))
                    elif why := _no_file(path):
                        left_out.append(LeftOut(name_of(path), why))
                    else:
                        names.append(name_of(path))
        waiting = linked
    return sorted(names), sorted(left_out)


def _identity(folder: str) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _no_file(path: str) -> str | None:
    """Return the reason to skip a path that is neither a regular file nor a link to one."""
    if os.path.isfile(path):
        return None
    if os.path.islink(path) and not os.path.exists(path):
        return "a broken link"
    return "no regular file"


def _reason_to_skip(file: Path) -> str | None:
    """Return the reason to skip a file; None for a text file."""
    try:
        if _is_text(file):
            return None
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if file.suffix in _COMPRESSED:
        return "compressed"
    return "binary"


def _check_readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise UserError(
            f"{file} can't be read: {error.strerror}; give a file that may be read"
        ) from None


def _walk(root: Path, leave_out: set[str]) -> Iterator[str]:
    """Yield regular files below `root` by relative name, without hidden files or linked folders."""
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in leave_out and not name.startswith(".")]
        for name in files:
            file = Path(folder) / name
            if not name.startswith(".") and file.is_file():
                yield file.relative_to(root).as_posix()


def _whole_file(root: Path, names: tuple[str, ...], shard: int) -> Iterator[bytes]:
    """Yield the file as one document, unless it is empty."""
    if data := (root / names[shard]).read_bytes():
        yield data


def _is_text(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    # UTF-16 has zero bytes too. It counts as text, so that it is refused with an error instead of
    # being skipped.
    return b"\0" not in head or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _check_utf8(file: Path) -> None:
    try:
        file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"expected UTF-8 text in {file}, found byte 0x{error.object[error.start]:02x} at "
            f"position {error.start}; convert the file (for example with iconv -t UTF-8) or move "
            "it away"
        ) from None
