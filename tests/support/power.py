"""A disk whose power can be cut: it knows after every operation what might be left."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainenv.tools.tensor_file.filesystem import Disk

BLOCK = 512  # bytes that a disk writes whole or not at all
Lie = Literal["", "sync", "sync_folder", "order"]


@dataclass(frozen=True)
class Change:
    """To a folder, since it was last synced. `number` is the file's, whatever its name."""

    kind: Literal["create", "rename", "unlink"]
    name: str
    number: int
    target: str = ""


@dataclass(frozen=True)
class Moment:
    """Certain and uncertain parts of a disk, between two operations.

    Attributes:
        names: the folder as last synced.
        changes: to it since, in order. Any of them may have reached the disk or not.
        contents: number of a file → its content as last synced, and as it was last written.
        acknowledged: how many saves the store had said were there for good.
    """

    names: Mapping[str, int]
    changes: tuple[Change, ...]
    contents: Mapping[int, tuple[bytes, bytes]]
    acknowledged: int


class PowerCut(Disk):
    """The real disk, and beside it a record of every moment at which the power might have been cut.

    Harsher than file systems are: a file's own sync does not make its name last, and changes to a folder that is not synced
    happen in any combination. `lie` makes one promise of the disk's void, to see that this is noticed.
    """

    def __init__(self, lie: Lie = "") -> None:
        self.lie = lie
        self.acknowledged = 0
        self.moments: list[Moment] = []
        self._numbers = itertools.count()
        self._names: dict[str, int] = {}
        self._changes: tuple[Change, ...] = ()
        self._contents: dict[int, tuple[bytes, bytes]] = {}
        self._open: dict[int, int] = {}

    def create(self, path: Path) -> int:
        file = super().create(path)
        number = self._now().get(path.name)
        if number is None:
            number = next(self._numbers)
            self._changes += (Change("create", path.name, number),)
            self._contents[number] = (b"", b"")
        self._contents[number] = (self._contents[number][0], b"")
        self._open[file] = number
        self._note()
        return file

    def write(self, file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        taken = super().write(file, data, offset)
        synced, written = self._contents[self._open[file]]
        before = written[:offset].ljust(offset, b"\0")
        self._contents[self._open[file]] = (
            synced,
            before + bytes(data[:taken]) + written[offset + taken :],
        )
        self._note()
        return taken

    def sync(self, file: int) -> None:
        if self.lie != "sync":
            written = self._contents[self._open[file]][1]
            self._contents[self._open[file]] = (written, written)
        self._note()

    def close(self, file: int) -> None:
        del self._open[file]
        super().close(file)

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._changes += (Change("rename", source.name, self._now()[source.name], target.name),)
        self._note()

    def sync_folder(self, folder: Path) -> None:
        if self.lie != "sync_folder":
            self._names, self._changes = self._now(), ()
        self._note()

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        if path.name in self._now():
            self._changes += (Change("unlink", path.name, self._now()[path.name]),)
        self._note()

    def _now(self) -> dict[str, int]:
        return _after(self._names, self._changes)

    def _note(self) -> None:
        self.moments.append(
            Moment(dict(self._names), self._changes, dict(self._contents), self.acknowledged)
        )


def _after(names: Mapping[str, int], changes: tuple[Change, ...]) -> dict[str, int]:
    found = dict(names)
    for change in changes:
        if change.kind == "create":
            found[change.name] = change.number
        else:
            if found.get(change.name) == change.number:
                del found[change.name]
            if change.kind == "rename":
                found[change.target] = change.number
    return found


def left(moment: Moment, chance: random.Random) -> dict[str, bytes]:
    """Draw a state that a power cut at a moment may leave: names and contents."""
    share = chance.choice((0.0, 0.5, 1.0))
    happened = tuple(change for change in moment.changes if chance.random() < share)
    return {
        name: _content(*moment.contents[number], chance)
        for name, number in _after(moment.names, happened).items()
    }


def _content(synced: bytes, written: bytes, chance: random.Random) -> bytes:
    """Draw the content: synced bytes are there; later ones may be, block by block, or zeros, or none."""
    if synced == written:
        return synced
    kept = [synced, written, bytes(len(written))]
    length = chance.choice((len(synced), len(written), chance.randint(0, max(len(written), 1))))
    if chance.random() < 0.5:
        return chance.choice(kept)[:length]
    blocks = [chance.choice(kept)[start : start + BLOCK] for start in range(0, length, BLOCK)]
    return b"".join(block.ljust(BLOCK, b"\0") for block in blocks)[:length]
