"""Every touch of the file system by a checkpoint, in one place: a test can make each of them fail, stop or lie."""

from __future__ import annotations

import os
from pathlib import Path

from trainenv.tools import portable


class Disk:
    """The real file system.

    Files are written at a path of their own, flushed, and only then renamed to where they belong.
    """

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, to last; nothing happens where it is there."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in reversed(missing):
            self.sync_folder(path.parent)

    def create(self, path: Path) -> int:
        """Open a new file for writing; what lay there (a leftover of a process that died) is replaced."""
        return portable.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def write(self, file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write at `offset`; returns how many bytes the system took, which may be fewer than were given."""
        return portable.write_at(file, data, offset)

    def sync(self, file: int) -> None:
        """Wait until what was written has reached the device."""
        os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic: whoever looks at `target` sees the old file or the new one, whole."""
        os.replace(source, target)

    def sync_folder(self, folder: Path) -> None:
        """Make renames and deletions in a folder last."""
        portable.sync_folder(folder)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)
