"""Files of JSON lines: a record a line, appended, whole or passed over."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line.

    What a crash left of one before stands alone on its line, and is passed over when read.
    """
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(plain(record)).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; torn ones never happened."""
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line.decode())
        except ValueError:  # no UTF-8 either: a power cut leaves blocks of anything
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value
