"""`processes.jsonl`: the processes that trained a run, with their command, versions and time.

Each process writes one line when it begins and one when it ends, so that a run which was resumed
has two lines for each of them. A process that was killed has no second line.
"""

from __future__ import annotations

import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainenv.tools.json_lines import append_line, read_lines
from trainenv.tools.version import VERSION
from trainenv.types import Run

NAME = "processes.jsonl"
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
_SECRET = re.compile(r"((?:^|=)alerts[\w.]*=).*", re.DOTALL)  # addresses with tokens in them


def note_start(folder: Path, run: Run) -> None:
    """Note that this process begins to train a run. A full disk is met later, by the run itself."""
    record = {
        "kind": "start",
        "time": round(time.time(), 1),
        "step": run.step,
        "command": command(),
        "versions": versions(),
        "device": str(run.device),
        "parameters": _parameters(run),
    }
    with suppress(OSError):
        append_line(folder / NAME, record)


def note_end(folder: Path, run: Run, ended: str, seconds: float) -> None:
    """Note that this process has ended its training.

    Args:
        folder: Folder of the run.
        run: Run after its last step.
        ended: Reason of the end: `budget spent`, `diverged` or `interrupted`.
        seconds: Wall-clock time of the training.
    """
    record = {
        "kind": "end",
        "time": round(time.time(), 1),
        "step": run.step,
        "ended": ended,
        "seconds": round(seconds, 1),
    }
    with suppress(OSError):
        append_line(folder / NAME, record)


def read_processes(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the file, in order; empty for runs of earlier versions."""
    return [line for line in read_lines(folder / NAME) if line.get("kind") in ("start", "end")]


def versions() -> Mapping[str, str]:
    """Return the versions of Python, trainenv and the packages that results depend on."""
    found = {"trainenv": VERSION, "python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def command(arguments: Sequence[str] | None = None) -> str:
    """Return the command of this process as it is typed, without the values of secret keys.

    Args:
        arguments: Program and arguments; those of the process if left out.
    """
    if arguments is None:
        arguments = sys.argv
    program, *rest = list(arguments) or [""]
    path = Path(program)
    name = path.name
    if name == "__main__.py" and path.parent.name in ("trainenv", "cli"):
        name = "trainenv"
    elif name.endswith(".py"):
        name = f"python {shlex.quote(name)}"
    return " ".join([name or "python", *(shlex.quote(_shown(one)) for one in rest)])


def _shown(argument: str) -> str:
    """Return an argument without the value of a secret key."""
    return _SECRET.sub(r"\1…", argument)


def _parameters(run: Run) -> int | None:
    """Return the number of parameters of the model; None if they can't be counted."""
    model: Any = getattr(run, "model", None)
    try:
        return int(sum(parameter.numel() for parameter in model.parameters()))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
