"""Our state inside the checkpoint folders of a framework, and the marks of those left behind.

A folder `checkpoint-N` is complete once it holds our file of each process: these are written last.
A folder that a rewind has left behind is renamed, so that no resume finds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainenv.checkpoints import file
from trainenv.integrations.attach import processes
from trainenv.training import snapshots
from trainenv.types import UserError

FILE = "trainenv.ptz"
LEFT_BEHIND = "left-behind-"
_NAME = re.compile(r"checkpoint-(\d+)")


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Write our state into a folder, whole or not at all."""
    contents = {"run": dict(state), "ledger": state["ledger"]}
    file.write(snapshots.capture(state["step"], contents), processes.own(folder / FILE))


def read(folder: Path) -> dict[str, Any] | None:
    """Return our state in a folder; None if it holds none.

    Raises:
        BrokenCheckpoint: The file is damaged.
    """
    path = processes.own(folder / FILE)
    if not path.is_file():
        return None
    state: dict[str, Any] = snapshots.expand(file.read(path))["run"]
    return state


def resolve(
    folder: Path, asked: str | bool | None
) -> tuple[str | bool | None, dict[str, Any] | None]:
    """Return the checkpoint to resume from, and our state in it.

    Args:
        folder: Folder that holds the checkpoints.
        asked: Path of a checkpoint; True for the newest complete one; None or False for none.

    Raises:
        UserError: The checkpoint was left behind by a rewind.
    """
    if asked is None or asked is False:
        return None, None
    if asked is True:
        found = [path for _, path in _listed(folder) if _is_complete(path)]
        if not found:
            return True, None
        return str(found[-1]), read(found[-1])
    path = Path(str(asked))
    if path.name.startswith(LEFT_BEHIND):
        raise UserError(
            f"the run has gone back to before {path.name}, so that it leads nowhere; resume from "
            "another checkpoint, or from the newest with resume_from_checkpoint=True"
        )
    return str(asked), read(path)


def leave_behind(folder: Path, step: int) -> None:
    """Mark the checkpoints after a step: the run has gone back to it."""
    for at, path in _listed(folder):
        if at > step:
            count = 1
            target = path.with_name(LEFT_BEHIND + path.name)
            while target.exists():
                count += 1
                target = path.with_name(f"{LEFT_BEHIND}{path.name}-{count}")
            path.rename(target)


def _is_complete(folder: Path) -> bool:
    every = range(processes.size())
    return all(processes.of_process(folder / FILE, one).is_file() for one in every)


def _listed(folder: Path) -> list[tuple[int, Path]]:
    """Return step and path of each checkpoint, the newest last."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if (match := _NAME.fullmatch(path.name)) and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found)
