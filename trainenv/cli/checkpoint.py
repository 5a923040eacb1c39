"""`trainenv checkpoint`: look after a folder of checkpoints.

Each action returns the JSON value to print and the exit code.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from trainenv.checkpoints import FOLDER, file, interop
from trainenv.checkpoints.store import CheckpointStore
from trainenv.cli.options import Result
from trainenv.config.presets import merge, read_yaml
from trainenv.config.schema import CheckpointConfig, Config, validate
from trainenv.types import UserError

Say = Callable[[str], None]
BROKEN = 1


def checkpoint_command(args: argparse.Namespace) -> Result:
    """Verify, show, collect or export."""
    from trainenv.cli.progress import Progress

    say = Progress(args.action, 1, quiet=args.json).say
    if args.action == "verify":
        return verify(args.folder, say)
    if args.action == "show":
        return show(args.folder, say)
    if args.action == "gc":
        return collect(args.folder, say, dry_run=args.dry_run, keep_last=args.keep_last)
    return export(args.folder, say, out=args.out, step=args.step)


def open_store(path: Path, config: CheckpointConfig | None = None) -> CheckpointStore:
    """The checkpoints in a run's folder, or in their own.

    Raises:
        UserError: there are none.
    """
    folder = _folder(path)
    if not folder.is_dir() or not any(folder.glob("cp_*.ptz")):
        raise UserError(
            f"expected checkpoints in {path}, found none; give a run's folder, or the checkpoints folder in it"
        )
    return CheckpointStore(folder, **(config or CheckpointConfig()).model_dump())


def verify(path: Path, say: Say) -> Result:
    """Read every byte of every file and say whether it is what was saved.

    The exit code is 1 where one is not.
    """
    store = open_store(path)
    findings = store.verify()
    for finding in findings:
        say(
            f"{'ok    ' if finding.ok else 'BROKEN'} {finding.file}{': ' if finding.reason else ''}{finding.reason}"
        )
    broken = sum(not finding.ok for finding in findings)
    say(
        f"{broken} of {len(findings)} files are broken"
        if broken
        else f"all {len(findings)} files are whole"
    )
    found = [
        {"file": finding.file, "ok": finding.ok, "reason": finding.reason} for finding in findings
    ]
    result = {
        "command": "checkpoint verify",
        "folder": str(store.folder),
        "ok": not broken,
        "files": found,
    }
    return result, BROKEN if broken else 0


def show(path: Path, say: Say) -> Result:
    """List the checkpoints in order of saving, and the numeric settings of the newest whose header can be read."""
    store = open_store(path)
    entries = store.entries()
    say(f"{'step':>9}  {'sequence':>8}  {'tier':>5}  {'size':>10}  {'file':<16}  held by")
    for entry in entries:
        size = _size(entry.bytes)
        holders = ", ".join(entry.holders)
        say(
            f"{entry.step:>9}  {entry.sequence:>8}  {entry.tier:>5}  {size:>10}  {entry.file:<16}  {holders}".rstrip()
        )
    say(f"{len(entries)} checkpoints, {_size(sum(entry.bytes for entry in entries))}")
    numerics = {}
    for entry in reversed(entries):
        try:
            numerics = dict(file.read_header(store.folder / entry.file).state.get("numerics", {}))
        except UserError as error:
            say(str(error))
            continue
        settings = ", ".join(f"{name} {value}" for name, value in numerics.items())
        say(f"numeric settings at step {entry.step}: {settings or 'none'}")
        break
    listed = [asdict(entry) for entry in entries]
    return {
        "command": "checkpoint show",
        "folder": str(store.folder),
        "checkpoints": listed,
        "numerics": numerics,
    }, 0


def collect(path: Path, say: Say, *, dry_run: bool, keep_last: int | None) -> Result:
    """Delete what the run's configuration does not keep; on a dry run only say what that would be.

    Args:
        path: the folder.
        say: tells the user.
        dry_run: delete nothing.
        keep_last: how many of the newest are kept, in place of what the configuration says.
    """
    config = _folder(path).parent / "config.yaml"
    kept = {"checkpoints": read_yaml(config).get("checkpoints", {}) if config.is_file() else {}}
    over = {} if keep_last is None else {"checkpoints": {"keep_last": keep_last}}
    store = open_store(path, validate(_Kept, merge(kept, over), str(config)).checkpoints)
    try:
        deletions = store.preview() if dry_run else store.collect()
    finally:
        store.close()
    for deletion in deletions:
        say(
            f"{'would delete' if dry_run else 'deleted'} {deletion.file} ({_size(deletion.bytes)}): {_REASONS[deletion.reason]}"
        )
    total = sum(deletion.bytes for deletion in deletions)
    say(f"{len(deletions)} files, {_size(total)}" if deletions else "nothing to delete")
    listed = [asdict(deletion) for deletion in deletions]
    result = {
        "command": "checkpoint gc",
        "folder": str(store.folder),
        "dry_run": dry_run,
        "bytes": total,
        "deleted": listed,
    }
    return result, 0


def export(path: Path, say: Say, *, out: Path, step: int | None) -> Result:
    """Write the weights of a checkpoint, the newest if no step is given, as plain torch and transformers load them."""
    snapshot = open_store(path).load(step)
    interop.export(snapshot, out)
    what = (
        "the weights" if out.suffix == ".safetensors" else "the weights and the optimizer's state"
    )
    rounded = (
        ", whose moments were rounded to 8 bits"
        if snapshot.tier == "8bit" and out.suffix == ".pt"
        else ""
    )
    say(f"wrote {what} of step {snapshot.step}{rounded} to {out} ({_size(out.stat().st_size)})")
    return {
        "command": "checkpoint export",
        "step": snapshot.step,
        "tier": snapshot.tier,
        "out": str(out),
    }, 0


_REASONS = {
    "retention": "older than the newest that are kept",
    "cap": "the folder would have more bytes than max_bytes allows",
    "orphan": "left by a save that never finished",
}


class _Kept(Config):
    """The part of a run's configuration that matters here."""

    checkpoints: CheckpointConfig


def _folder(path: Path) -> Path:
    return path / FOLDER if (path / FOLDER).is_dir() else path


def _size(count: int) -> str:
    """Bytes, as people read them."""
    size = float(count)
    units = ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size = size / 1024
        units = units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
