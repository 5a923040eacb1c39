"""`trainenv fork`: start a run from a checkpoint of another one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainenv.cli.options import (
    Result,
    add_command,
    add_overrides,
    as_path,
    interruptible,
    overrides_of,
)
from trainenv.cli.run import Start, add_steering, callback_of, flags_of, train_to_end
from trainenv.types import UserError


def add_fork(commands: Any) -> None:
    """Add the command."""
    fork = add_command(
        commands,
        "fork",
        fork_command,
        "Start a run from a checkpoint of another one, with other settings or other data.",
    )
    fork.add_argument(
        "parent",
        metavar="FOLDER@STEP",
        help="folder of the other run, and the step to start from (default: its newest checkpoint)",
    )
    add_overrides(fork, "optimizer.lr=1e-3")
    fork.add_argument(
        "--out", type=as_path, metavar="FOLDER", help="folder of the record (default: runs/NAME-N)"
    )
    add_steering(fork)
    fork.add_argument(
        "--unsteered",
        action="store_true",
        help="train without steering (default: steered as the other run was)",
    )


def fork_command(args: argparse.Namespace) -> Result:
    """Fork a recorded state and train the new run to its end."""
    from trainenv.records.continuation import fork
    from trainenv.records.made_of import MadeOf

    parent, step = _split(args.parent)
    flags = flags_of(args)
    if args.unsteered and flags:
        raise UserError(f"--unsteered leaves a run alone, found {flags[0]} too; give one of them")
    made = MadeOf.read(parent)
    if made is not None and not flags and not args.unsteered:
        flags = made.flags
    callback = callback_of(flags)
    forked = fork(parent, step, overrides_of(args.set), args.out)
    forked.folder.flags = flags
    notes = [f"starting from step {forked.run.step} of {parent}, in {forked.folder.path}"]
    if forked.note:
        notes.append(forked.note)
    start = Start(run=forked.run, folder=forked.folder, callback=callback, notes=notes)
    with interruptible() as stop:
        return train_to_end(start, args, stop)


def _split(text: str) -> tuple[Path, int | None]:
    """Read FOLDER@STEP; a folder may have an @ in its own name.

    Raises:
        UserError: The part after the last @ is no step, and no folder has the whole name.
    """
    if Path(text).expanduser().is_dir():
        return as_path(text).expanduser(), None
    folder, at, step = text.rpartition("@")
    if not at:
        return as_path(text).expanduser(), None
    if not (folder and step.isdecimal()):
        raise UserError(
            f"expected FOLDER@STEP, found {text!r}; for example runs/tiny@400, or runs/tiny for its"
            " newest checkpoint"
        )
    return as_path(folder).expanduser(), int(step)
