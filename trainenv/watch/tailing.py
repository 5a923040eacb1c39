"""Reading of files that another process appends to: each byte once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_MOST = 1 << 26  # bytes that are read at once


class Tail:
    """New records of a file of JSON lines, each time it is asked.

    A half line at the end is read again when it is whole. A file that was replaced or cut is read
    from its start.

    Args:
        path: File, which need not exist yet.

    Attributes:
        replaced: True if the last `read` has begun at the start of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replaced = False
        self._place = 0
        self._file = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the records since the last call, in order; torn lines are skipped.

        Raises:
            OSError: The file exists and can't be read.
        """
        self.replaced = False
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return []
        if found.st_ino != self._file or found.st_size < self._place:
            self._file = found.st_ino
            self._place = 0
            self.replaced = True
        if found.st_size == self._place:
            return []
        with self.path.open("rb") as file:
            file.seek(self._place)
            new = file.read(_MOST)
        whole = new.rfind(b"\n") + 1
        self._place += whole
        return _records(new[:whole])


def _records(lines: bytes) -> list[dict[str, Any]]:
    records = []
    for line in lines.splitlines():
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
