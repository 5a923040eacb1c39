"""The runs below a folder: their state, result, steering and size, read from their files."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from trainenv.checkpoints import FOLDER
from trainenv.checkpoints.lock import NAME as LOCK
from trainenv.records.continuation import read_parent
from trainenv.records.made_of import MadeOf
from trainenv.records.run_folder import read_validation
from trainenv.tools.json_lines import plain

State = Literal["running", "finished", "diverged", "interrupted", "not started"]
_DEEPEST = 4  # folders between the one that is searched and a run
_TELEMETRY = "telemetry"


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run as it is on the disk.

    Attributes:
        folder: Folder of the run.
        name: Name in its configuration.
        state: `running`, `finished`, `diverged`, `interrupted` (it can be resumed), or
            `not started`.
        step: Optimizer steps of the newest checkpoint or of the result; None if unknown.
        steps: Budget in optimizer steps; None if unknown.
        loss: Newest validation loss, nats per token; None without one.
        steered: Arguments of `trainenv run` that steer it, or the class of its callback; empty for
            a run that is left alone.
        parent: Folder and step of the state that it starts from, as `FOLDER@STEP`; empty if it is
            no fork.
        bytes: Size of all its files, bytes.
    """

    folder: Path
    name: str
    state: State
    step: int | None
    steps: int | None
    loss: float | None
    steered: str
    parent: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return all fields as strict JSON values."""
        values = plain({**asdict(self), "folder": str(self.folder)})
        assert isinstance(values, dict)
        return values


def list_runs(root: Path) -> list[RunStatus]:
    """Return the runs in a folder and below it, in the order of their paths."""
    return [_status(folder) for folder in _run_folders(root, _DEEPEST)]


def _run_folders(folder: Path, deepest: int) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
        return
    if deepest < 0:
        return
    with suppress(OSError):
        for inside in sorted(path for path in folder.iterdir() if path.is_dir()):
            if not inside.is_symlink():
                yield from _run_folders(inside, deepest - 1)


def _is_run(folder: Path) -> bool:
    recorded = (folder / FOLDER).is_dir() or (folder / _TELEMETRY).is_dir()
    return recorded and (folder / "config.yaml").is_file()


def _status(folder: Path) -> RunStatus:
    summary = _read(folder / "summary.json", json.loads)
    config = _read(folder / "config.yaml", yaml.safe_load)
    saved = _saved_steps(folder)
    losses = [one.get("loss") for one in read_validation(folder)]
    parent = read_parent(folder)
    made = MadeOf.read(folder)
    steered = ""
    if made is not None and (made.flags or made.callback is not None):
        steered = made.steered_by
    step = summary.get("step")
    if step is None and saved:
        step = saved[-1]
    loss = summary.get("final_validation_loss", losses[-1] if losses else None)
    return RunStatus(
        folder=folder,
        name=str(config.get("name", folder.name)),
        state=_state(folder, summary, saved),
        step=step,
        steps=config.get("steps"),
        loss=loss,
        steered=steered,
        parent="" if parent is None else f"{parent['folder']}@{parent['step']}",
        bytes=_bytes(folder),
    )


def _state(folder: Path, summary: Mapping[str, Any], saved: list[int]) -> State:
    if summary:
        return "diverged" if summary.get("ended") == "diverged" else "finished"
    if _is_in_use(folder):
        return "running"
    return "interrupted" if saved else "not started"


def _is_in_use(folder: Path) -> bool:
    """Tell whether the process that the lock file names is alive; one elsewhere counts as alive.

    The lock itself is not tried: for that moment no run could take it.
    """
    holder = _read(folder / FOLDER / LOCK, json.loads)
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except PermissionError:
        return True
    except (OSError, LookupError, TypeError, ValueError, OverflowError):
        return False
    return True


def _saved_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoint files, lowest first; nothing is opened."""
    names = (path.stem.removeprefix("cp_") for path in (folder / FOLDER).glob("cp_*.ptz"))
    return sorted(int(name) for name in names if name.isdecimal())


def _read(path: Path, parse: Any) -> Mapping[str, Any]:
    """Return the mapping in a file; empty if it can't be read."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    if isinstance(value, Mapping):
        return value
    return {}


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            if not path.is_symlink():
                total += path.stat().st_size
    return total
