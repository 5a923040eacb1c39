"""Logs of JSON lines: each line is one record, appended; torn lines are skipped when read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record as one line.

    If a crash left half a line at the end, the record starts on a new one.
    """
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(plain(record)).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log; lines that a crash has torn are skipped."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line.decode())
        except ValueError:  # also where it is no UTF-8: a power cut may leave blocks of other files
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def plain(value: Any) -> Any:
    """Return a value that strict JSON can hold: non-finite numbers become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def number_or_nan(value: Any) -> float:
    """Return a number that was read from JSON; NaN for null."""
    if value is None:
        return math.nan
    return float(value)
