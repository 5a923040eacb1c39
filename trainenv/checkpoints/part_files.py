"""Files of the processes that have saved a checkpoint together, next to that of process 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainenv.checkpoints import file
from trainenv.types import UserError

PROCESSES = "processes"
"""Part of the state that names the number of processes, the file, and the digests of the parts."""


def part_path(folder: Path, name: str, rank: int) -> Path:
    """Return the path of the part of a process."""
    if rank == 0:
        return folder / name
    return folder / f"rank-{rank}" / name


def problem(folder: Path, parts: Mapping[str, Any], rank: int) -> str:
    """Return why the part of a process can't be used; empty if it can.

    Args:
        folder: Folder of the checkpoints.
        parts: `PROCESSES` of the state that process 0 has saved.
        rank: Number of the process.
    """
    if rank == 0:
        return ""
    path = part_path(folder, parts["file"], rank)
    try:
        digest = file.read_header(path).digest
        if digest != parts["digests"][rank]:
            return f"{path} is not the file that was saved: its digest is {digest}"
        file.read(path)
    except UserError as error:
        return str(error)
    return ""
