"""`trainenv checkpoint`: check, list, delete or export the checkpoints of a run.

Each action returns the JSON value to print and the exit code.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import Result, add_actions, add_command, as_path
from trainenv.config.presets import merge, read_yaml
from trainenv.config.schema import CheckpointConfig, Config, validate
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.checkpoints.store import CheckpointStore

Say = Callable[[str], None]

_REASONS = {
    "retention": "older than the newest that are kept",
    "cap": "the folder would have more bytes than max_bytes allows",
    "orphan": "left by a save that never finished",
}
_MARKS = {True: "ok    ", False: "BROKEN"}


class _Kept(Config):
    """Part of a run's configuration that says which checkpoints are kept."""

    checkpoints: CheckpointConfig


def add_checkpoint(commands: Any) -> None:
    """Add the command and its actions."""
    actions = add_actions(
        commands, "checkpoint", "Check, list, delete or export the checkpoints of a run."
    )
    _add_action(
        actions, "verify", "Check every byte of every checkpoint; exit code 1 if one is broken."
    )
    _add_action(actions, "show", "List the checkpoints: step, tier, size and holders.")
    collecting = _add_action(actions, "gc", "Delete the checkpoints that are not to be kept.")
    collecting.add_argument(
        "--dry-run", action="store_true", help="list the files, and delete nothing"
    )
    collecting.add_argument(
        "--keep-last",
        type=int,
        metavar="N",
        help="number of the newest checkpoints to keep (default: as the run is configured)",
    )
    exporting = _add_action(
        actions, "export", "Write the weights of a checkpoint for torch and transformers."
    )
    exporting.add_argument(
        "out",
        type=as_path,
        metavar="OUT",
        help="file to write: .safetensors, or .pt with the optimizer's state",
    )
    exporting.add_argument(
        "--dcp",
        action="store_true",
        help="write a folder OUT that torch.distributed.checkpoint loads into any number of"
        " processes",
    )
    exporting.add_argument(
        "--step", type=int, metavar="N", help="step of the checkpoint (default: the newest)"
    )


def _add_action(actions: Any, name: str, about: str) -> argparse.ArgumentParser:
    parser = add_command(actions, name, checkpoint_command, about)
    parser.add_argument(
        "folder",
        type=as_path,
        metavar="FOLDER",
        help="folder of a run, or the checkpoints folder in it",
    )
    return parser


def checkpoint_command(args: argparse.Namespace) -> Result:
    """Run one action."""
    from trainenv.cli.progress import Progress

    say = Progress(args.action, 1, quiet=args.json).say
    if args.action == "verify":
        return verify(args.folder, say)
    if args.action == "show":
        return show(args.folder, say)
    if args.action == "gc":
        return collect(args.folder, say, dry_run=args.dry_run, keep_last=args.keep_last)
    return export(args.folder, say, out=args.out, step=args.step, dcp=args.dcp)


def open_store(path: Path, config: CheckpointConfig | None = None) -> CheckpointStore:
    """Open the checkpoints of a run.

    Args:
        path: Folder of the run, or of its checkpoints.
        config: Settings of the store; the defaults if left out.

    Raises:
        UserError: There are no checkpoints.
    """
    from trainenv.checkpoints.store import CheckpointStore

    folder = _folder(path)
    if not folder.is_dir() or not any(folder.glob("cp_*.ptz")):
        raise UserError(
            f"expected checkpoints in {path}, found none; give the folder of a run, or the"
            " checkpoints folder in it"
        )
    return CheckpointStore(folder, **(config or CheckpointConfig()).model_dump())


def verify(path: Path, say: Say) -> Result:
    """Check every byte of every file against what was saved, also of those that replays start from.

    The exit code is 1 if a file is broken.
    """
    store = open_store(path)
    findings = [
        replace(finding, file=f"{place}{finding.file}")
        for place, one in (("", store), *_stores_of_decisions(store.folder.parent))
        for finding in one.verify()
    ]
    for finding in findings:
        reason = finding.reason and f": {finding.reason}"
        say(f"{_MARKS[finding.ok]} {finding.file}{reason}")
    broken = sum(not finding.ok for finding in findings)
    if broken:
        say(f"{broken} of {len(findings)} files are broken")
    else:
        say(f"all {len(findings)} files are whole")
    found = [
        {"file": finding.file, "ok": finding.ok, "reason": finding.reason} for finding in findings
    ]
    result = {
        "command": "checkpoint verify",
        "folder": str(store.folder),
        "ok": not broken,
        "files": found,
    }
    return result, int(bool(broken))


def _stores_of_decisions(run_folder: Path) -> Iterator[tuple[str, CheckpointStore]]:
    """Yield the checkpoints that decisions are replayed from, each with its place in the run."""
    from trainenv.checkpoints.store import CheckpointStore

    for folder in sorted((run_folder / "branches").glob("*")):
        if any(folder.glob("cp_*.ptz")):
            yield f"branches/{folder.name}/", CheckpointStore(folder)


def show(path: Path, say: Say) -> Result:
    """List the checkpoints in the order they were saved, and the newest numeric settings."""
    store = open_store(path)
    entries = store.entries()
    say(f"{'step':>9}  {'sequence':>8}  {'tier':>5}  {'size':>10}  {'file':<16}  held by")
    for entry in entries:
        row = (
            f"{entry.step:>9}  {entry.sequence:>8}  {entry.tier:>5}  {_size(entry.bytes):>10}"
            f"  {entry.file:<16}  {', '.join(entry.holders)}"
        )
        say(row.rstrip())
    say(f"{len(entries)} checkpoints, {_size(sum(entry.bytes for entry in entries))}")
    return {
        "command": "checkpoint show",
        "folder": str(store.folder),
        "checkpoints": [asdict(entry) for entry in entries],
        "numerics": _newest_numerics(store, say),
    }, 0


def collect(path: Path, say: Say, *, dry_run: bool, keep_last: int | None) -> Result:
    """Delete the checkpoints that the run's configuration does not keep.

    Args:
        path: Folder of the run, or of its checkpoints.
        say: Function that prints a sentence.
        dry_run: True to list the files and delete nothing.
        keep_last: Number of the newest checkpoints to keep; None for that of the configuration.
    """
    config = _folder(path).parent / "config.yaml"
    kept: dict[str, Any] = {"checkpoints": {}}
    if config.is_file():
        kept["checkpoints"] = read_yaml(config).get("checkpoints", {})
    if keep_last is not None:
        kept = merge(kept, {"checkpoints": {"keep_last": keep_last}})
    store = open_store(path, validate(_Kept, kept, str(config)).checkpoints)
    verb = "deleted"
    try:
        if dry_run:
            verb = "would delete"
            deletions = store.preview()
        else:
            deletions = store.collect()
    finally:
        store.close()
    for deletion in deletions:
        reason = _REASONS[deletion.reason]
        say(f"{verb} {deletion.file} ({_size(deletion.bytes)}): {reason}")
    total = sum(deletion.bytes for deletion in deletions)
    if deletions:
        say(f"{len(deletions)} files, {_size(total)}")
    else:
        say("nothing to delete")
    result = {
        "command": "checkpoint gc",
        "folder": str(store.folder),
        "dry_run": dry_run,
        "bytes": total,
        "deleted": [asdict(deletion) for deletion in deletions],
    }
    return result, 0


def export(path: Path, say: Say, *, out: Path, step: int | None, dcp: bool = False) -> Result:
    """Write the weights of a checkpoint as plain torch and transformers load them.

    Args:
        path: Folder of the run, or of its checkpoints.
        say: Function that prints a sentence.
        out: File to write; one that ends in .pt also has the optimizer's state.
        step: Step of the checkpoint; None for the newest.
        dcp: True to write a folder for `torch.distributed.checkpoint`.
    """
    from trainenv.checkpoints import distributed_format, interop
    from trainenv.checkpoints.parts import merged

    store = open_store(path)
    snapshot = merged(store.folder, store.load(step))
    if dcp:
        size = distributed_format.export(snapshot, out)
    else:
        size = interop.export(snapshot, out).stat().st_size
    written = f"the weights of step {snapshot.step}"
    if dcp or out.suffix == ".pt":
        written = f"the weights and the optimizer's state of step {snapshot.step}"
        if snapshot.tier == "8bit":
            written += ", whose moments were rounded to 8 bits,"
    say(f"wrote {written} to {out} ({_size(size)})")
    return {
        "command": "checkpoint export",
        "step": snapshot.step,
        "tier": snapshot.tier,
        "out": str(out),
    }, 0


def _newest_numerics(store: CheckpointStore, say: Say) -> dict[str, Any]:
    """Print and return the numeric settings of the newest checkpoint whose header can be read."""
    from trainenv.checkpoints import file

    for entry in reversed(store.entries()):
        try:
            state = file.read_header(store.folder / entry.file).state
        except UserError as error:
            say(str(error))
            continue
        numerics = dict(state.get("numerics", {}))
        settings = ", ".join(f"{name} {value}" for name, value in numerics.items())
        say(f"numeric settings at step {entry.step}: {settings or 'none'}")
        return numerics
    return {}


def _folder(path: Path) -> Path:
    """Find the checkpoints folder of a run; a path that has none in it is one itself."""
    from trainenv.checkpoints import FOLDER

    inside = path / FOLDER
    if inside.is_dir():
        return inside
    return path


def _size(count: int) -> str:
    """Return a number of bytes as people write it."""
    size = float(count)
    if size < 1024:
        return f"{size:.0f} B"
    units = ["KiB", "MiB", "GiB"]
    size /= 1024
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units = units[1:]
    return f"{size:.1f} {units[0]}"
