"""The manifest: the list of the checkpoints in a folder.

A save counts from the moment it is listed. The list is read strictly; if it is lost, it is rebuilt
from the files.
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
LARGEST = 8 << 20  # bytes of a manifest
REBUILT = "rebuilt"  # holder of the checkpoints in a rebuilt list, whose real holders are lost
MOST = 10**17  # above any number of steps or saves
_FAMILY = FORMAT.rstrip("1")
_NUMBER = "0|[1-9][0-9]{0,17}"
_CHECKPOINT = rf"cp_({_NUMBER})(?:-({_NUMBER}))?\.ptz"
_OURS = re.compile(rf"{_CHECKPOINT}|\.{_CHECKPOINT}\.tmp|\.{re.escape(NAME)}\.tmp")


class Damaged(Exception):
    """A manifest that is not as it was written; the message is the end of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A checkpoint in the list.

    Attributes:
        file: Name in the folder.
        step: Optimizer steps completed.
        sequence: Order of saving, from 1. Runs are rewound, so a later save may have a lower step.
        tier: `exact`, or `8bit` where the optimizer's moments were rounded.
        bytes: Length of the file, bytes.
        digest: Digest of the file, 32 hex digits.
        holders: Names of those who want the checkpoint kept.
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
    """The list of checkpoints.

    Attributes:
        entries: Checkpoints in order of saving.
        next_sequence: Sequence number of the next save.
    """

    entries: tuple[Entry, ...] = ()
    next_sequence: int = 1

    def to_bytes(self) -> bytes:
        """Return the whole file; equal manifests give equal bytes.

        Raises:
            UserError: The file would be too large, which only many holders can cause.
        """
        document: dict[str, Any] = {
            "format": FORMAT,
            "next": self.next_sequence,
            "entries": [asdict(e) for e in self.entries],
        }
        data = json.dumps(document | {"checksum": _checksum(document)}, indent=1).encode() + b"\n"
        if len(data) > LARGEST:
            raise UserError(
                f"the list of checkpoints may have {LARGEST} bytes, found {len(data)}; "
                "release some holders, or keep fewer"
            )
        return data


def checkpoint_name(step: int, sequence: int | None = None) -> str:
    """Return the file name of a step, with the sequence number if the plain name is taken."""
    if sequence is None:
        return f"cp_{step}.ptz"
    return f"cp_{step}-{sequence}.ptz"


def is_ours(name: str) -> bool:
    """Tell if a store uses this name: for a checkpoint, or for a temporary file."""
    return _OURS.fullmatch(name) is not None


def parse(data: bytes) -> Manifest:
    """Parse exactly the bytes that `Manifest.to_bytes` writes.

    Raises:
        Damaged: Anything differs: changed, missing or added bytes, repeated keys, types, names or
            the order.
        UserError: The manifest is whole, but another version of trainenv wrote it.
    """
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or document.pop("checksum", None) != _checksum(document):
            raise Damaged("its checksum is not that of its content")
        if document.get("format") != FORMAT and str(document.get("format")).startswith(_FAMILY):
            raise UserError(
                f"the checkpoints were listed by another version of trainenv: expected {FORMAT!r}, "
                f"found {document['format']!r:.60}; use the version that saved them"
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
            raise Damaged("it is not written as a store writes it")
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"it can't be read ({str(error)[:100]!a})") from None
    return manifest


def read(folder: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        FileNotFoundError: There is none.
        Damaged: The manifest is not as it was written, or is not a regular file.
        UserError: Another version of trainenv wrote the manifest, or it can't be read, which says
            nothing about its content.
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
    """Make a manifest from the headers of the files; also return the files left out, with reasons.

    The holder of every entry is `REBUILT`.
    """
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
    last = max((entry.sequence for entry in entries), default=0)
    return Manifest(tuple(entries), last + 1), left_out


def names_in(folder: Path) -> list[str]:
    """List the names in a folder, sorted; an empty list if the folder does not exist.

    Raises:
        UserError: The path is no folder, or the folder may not be read.
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
    """Tell if a regular file, not a link to one, is at `path`."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} can't be read: {error.strerror}; correct this, or give another folder"
    )


def _entry(**fields: Any) -> Entry:
    """Make an entry and check its types and its file name.

    Raises:
        ValueError, TypeError: A store would not have written it.
    """
    entry = Entry(**fields | {"holders": tuple(fields["holders"])})
    for number in (entry.step, entry.sequence, entry.bytes):
        _count(number)
    if entry.file not in (checkpoint_name(entry.step), checkpoint_name(entry.step, entry.sequence)):
        raise ValueError("an entry's file is not named as a store would name it")
    if entry.tier not in get_args(Tier) or not re.fullmatch("[0-9a-f]{32}", entry.digest):
        raise ValueError("an entry has an unknown tier or no digest")
    if not all(isinstance(holder, str) for holder in entry.holders):
        raise ValueError("an entry has a holder that is no text")
    if len(set(entry.holders)) < len(entry.holders):
        raise ValueError("an entry has the same holder twice")
    return entry


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST:
        raise ValueError("a number is out of range")
    return value


def _checksum(document: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(document, sort_keys=True).encode())
