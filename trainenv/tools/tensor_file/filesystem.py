"""All writes of a checkpoint to the file system, in one place.

A test can replace `Disk` and make each operation fail, stop or lie.
"""

from __future__ import annotations

import os
from pathlib import Path

from trainenv.tools import portable


class Disk:
    """The real file system.

    A file is written under a temporary name, flushed to the device, and only then renamed.
    """

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, if missing, so that they survive a power cut."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in reversed(missing):
            self.sync_folder(path.parent)

    def create(self, path: Path) -> int:
        """Open a new file for writing; it replaces what a process that died may have left."""
        return portable.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def write(self, file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write at `offset`; return the number of bytes written, which may be fewer than given."""
        return portable.write_at(file, data, offset)

    def sync(self, file: int) -> None:
        """Wait until all data of the file has reached the device."""
        os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def rename(self, source: Path, target: Path) -> None:
        """Rename atomically: a reader of `target` sees the whole old file or the whole new one."""
        os.replace(source, target)

    def sync_folder(self, folder: Path) -> None:
        """Wait until renames and deletions in a folder have reached the device."""
        portable.sync_folder(folder)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)
