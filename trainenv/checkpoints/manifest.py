"""The list of the checkpoints in a folder: a save that is not in it never happened.

Read strictly; rebuilt if lost.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import xxhash

from trainenv.checkpoints import file
from trainenv.tools import portable
from trainenv.types import Tier, UserError

NAME = "manifest.json"
FORMAT = "trainenv checkpoints 1"
LARGEST = 8 << 20  # bytes
REBUILT = (
    "rebuilt"  # who holds what was found when the list was lost, and with it who had held what
)
MOST = 10**17  # steps and saves are fewer
_FAMILY = FORMAT.rstrip("1")
_NUMBER = "0|[1-9][0-9]{0,17}"
_CHECKPOINT = rf"cp_({_NUMBER})(?:-({_NUMBER}))?\.ptz"
_OURS = re.compile(rf"{_CHECKPOINT}|\.{_CHECKPOINT}\.tmp|\.{re.escape(NAME)}\.tmp")


class Damaged(Exception):
    """A manifest that is not what was written: a sentence's end that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A checkpoint of a store.

    Attributes:
        file: its name in the folder.
        step: optimizer steps completed.
        sequence: order of saving, from 1. History may be rewound, so a higher number may have a
            lower step.
        tier: `exact`, or `8bit` where the optimizer's moments were rounded.
        bytes: length of the file.
        digest: of the file, 32 hex digits.
        holders: who wants it kept.
    """

    file: str
    step: int
    sequence: int
    tier: Tier
    bytes: int
    digest: str
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """Entries in order of saving, and the number of the next."""

    entries: tuple[Entry, ...] = ()
    next_sequence: int = 1

    def to_bytes(self) -> bytes:
        """The whole file; equal manifests give equal bytes.

        Raises:
            UserError: there is too much in it, which only holders can bring about.
        """
        document: dict[str, Any] = {
            "format": FORMAT,
            "next": self.next_sequence,
            "entries": [asdict(e) for e in self.entries],
        }
        data = json.dumps(document | {"checksum": _checksum(document)}, indent=1).encode() + b"\n"
        if len(data) > LARGEST:
            raise UserError(
                f"the list of checkpoints may have {LARGEST} bytes, found {len(data)}; release some holders, or keep fewer"
            )
        return data


def checkpoint_name(step: int, sequence: int | None = None) -> str:
    """The file of a step; with the sequence number where that name is taken."""
    return f"cp_{step}.ptz" if sequence is None else f"cp_{step}-{sequence}.ptz"


def is_ours(name: str) -> bool:
    """Whether a name is one that a store writes under: a checkpoint's, or a temporary file's."""
    return _OURS.fullmatch(name) is not None


def parse(data: bytes) -> Manifest:
    """What `Manifest.to_bytes` wrote, and nothing else.

    Raises:
        Damaged: anything about it is different: bytes flipped, missing or added, keys twice, types,
            names, order.
        UserError: it is whole, and of another version.
    """
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or document.pop("checksum", None) != _checksum(document):
            raise Damaged("its checksum is not that of its content")
        if document.get("format") != FORMAT and str(document.get("format")).startswith(_FAMILY):
            raise UserError(
                f"the checkpoints were listed by another version of trainenv: expected {FORMAT!r}, "
                f"found {document['format']!r:.60}; take the version that saved them"
            )
        manifest = Manifest(
            tuple(_entry(**entry) for entry in document["entries"]), _count(document["next"])
        )
        numbers = [(entry.sequence, entry.step) for entry in manifest.entries]
        names = {entry.file for entry in manifest.entries}
        if (
            numbers != sorted(numbers)
            or len(names) < len(numbers)
            or any(n >= manifest.next_sequence for n, _ in numbers)
        ):
            raise Damaged("its entries are out of order")
        if manifest.to_bytes() != data:
            raise Damaged("it is written differently from how a store writes it")
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"it can't be read ({str(error)[:100]!a})") from None
    return manifest


def read(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is not what was written, or not a file.
        UserError: it is of another version, or can't be read, which says nothing of what is in it.
    """
    path = folder / NAME
    try:
        opened = portable.open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Damaged("it is a symbolic link") from None
        raise _unreadable(path, error) from None
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise Damaged("it is no regular file")
        if found.st_size > LARGEST:
            raise Damaged(f"it has {found.st_size} bytes, more than {LARGEST}")
        with os.fdopen(opened, "rb", closefd=False) as stream:
            data = stream.read(LARGEST)
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(opened)
    return parse(data)


def rebuild(folder: Path) -> tuple[Manifest, dict[str, str]]:
    """A manifest from the headers of the files themselves, each held by `REBUILT`; and what was left out, with the reason."""
    entries = []
    left_out = {}
    for name in names_in(folder):
        match = re.fullmatch(_CHECKPOINT, name)
        if match is None:
            continue
        try:
            header = file.read_header(folder / name)
        except UserError as error:
            left_out[name] = str(error)
            continue
        named = header.step == int(match[1]) and match[2] in (None, str(header.sequence))
        if not named or not 0 <= header.sequence < MOST:
            left_out[name] = (
                f"its header is that of step {header.step}, sequence number {header.sequence}"
            )
            continue
        entries.append(
            Entry(
                file=name,
                step=header.step,
                sequence=header.sequence,
                tier=header.tier,
                bytes=header.file_bytes,
                digest=header.digest,
                holders=(REBUILT,),
            )
        )
    entries.sort(key=lambda entry: (entry.sequence, entry.step))
    return Manifest(
        tuple(entries), 1 + max((entry.sequence for entry in entries), default=0)
    ), left_out


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, sorted; nothing where there is no folder.

    Raises:
        UserError: it is no folder, or may not be read.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{folder} must be a folder of checkpoints, found: {error.strerror}; give another"
        ) from None


def is_regular(path: Path) -> bool:
    """Whether a file, no link to one, is there."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} can't be read: {error.strerror}; mend that, or give another folder")


def _entry(**fields: Any) -> Entry:
    """An entry of the right types, under a name that a store would have chosen.

    Raises:
        ValueError, TypeError: it is not one.
    """
    entry = Entry(**fields | {"holders": tuple(fields["holders"])})
    _count(entry.step), _count(entry.sequence), _count(entry.bytes)
    if entry.file not in (checkpoint_name(entry.step), checkpoint_name(entry.step, entry.sequence)):
        raise ValueError("an entry's file has a name of its own")
    if entry.tier not in get_args(Tier) or not re.fullmatch("[0-9a-f]{32}", entry.digest):
        raise ValueError("an entry has an unknown tier or no digest")
    if not all(isinstance(holder, str) for holder in entry.holders) or len(
        set(entry.holders)
    ) < len(entry.holders):
        raise ValueError("an entry's holders are not so many names")
    return entry


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST:
        raise ValueError("a number is out of range")
    return value


def _checksum(document: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(document, sort_keys=True).encode())
