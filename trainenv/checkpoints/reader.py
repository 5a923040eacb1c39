"""Reading a folder of checkpoints without a lock, while a writer may add and delete files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainenv.checkpoints import file, lock, manifest
from trainenv.checkpoints.header import BrokenCheckpoint
from trainenv.checkpoints.manifest import Entry, Manifest
from trainenv.checkpoints.names import MADE_OF
from trainenv.checkpoints.part_files import PROCESSES, problem
from trainenv.checkpoints.retention import Deletion
from trainenv.types import Snapshot, UserError

_MISSING = "there is none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of `verify` for one file in the folder.

    Attributes:
        file: Name in the folder.
        entry: Entry of the checkpoint in the list; None for the manifest and for unlisted files.
        ok: True if nothing is wrong with the file.
        reason: Description of the damage, or of a file that is not a checkpoint; empty for a whole
            checkpoint.
    """

    file: str
    entry: Entry | None
    ok: bool
    reason: str = ""


def read_listed(folder: Path) -> tuple[Manifest, list[str] | None]:
    """Return the manifest of a folder; the second value is None where it was read from the disk.

    A manifest that is damaged, or is missing although there are checkpoints, is rebuilt from their
    headers, with a warning. The second value then names the files that could not be listed again.

    Raises:
        UserError: The folder can't be read, or another version of trainenv wrote it.
    """
    try:
        return manifest.read(folder), None
    except FileNotFoundError:
        why = _MISSING
    except manifest.Damaged as damage:
        why = str(damage)
    found, left_out = manifest.rebuild(folder)
    if why != _MISSING or found.entries or left_out:
        listed = [
            f"{len(found.entries)} are listed again",
            *(f"{name} is left out: {left_out[name]}" for name in left_out),
        ]
        warnings.warn(
            f"the list of checkpoints {folder / manifest.NAME} was lost: {why}. It was rebuilt "
            f"from the files: {'; '.join(listed)}. Holders are not known, so all are kept until "
            f"release({manifest.REBUILT!r}); files left out are renamed and kept",
            stacklevel=3,
        )
    return found, list(left_out)


def of_step(folder: Path, entries: Sequence[Entry], step: int | None) -> list[Entry]:
    """Return the checkpoints of a step, or all of them, the newest first.

    Raises:
        UserError: There is none.
    """
    if step is not None and type(step) is not int:
        raise UserError(f"a step must be an int, found {step!r:.60}; give one of steps()")
    if not entries:
        raise UserError(
            f"expected checkpoints in {folder}, found none; save one, or give the folder of a "
            "store that has some"
        )
    found = [entry for entry in reversed(entries) if step in (None, entry.step)]
    if not found:
        steps = sorted(
            {entry.step for entry in entries}, key=lambda other: abs(other - (step or 0))
        )
        raise UserError(
            f"expected a checkpoint of step {step} in {folder}, found those of {len(steps)} "
            f"others; nearest: {sorted(steps[:8])}"
        )
    return found


def load(
    folder: Path,
    wanted: Sequence[Entry],
    entries: Sequence[Entry],
    *,
    exact: bool,
    missing_is_broken: bool = False,
) -> Snapshot:
    """Load the first undamaged checkpoint of `wanted`, and warn of the damaged ones before it.

    Args:
        folder: Folder of the checkpoints.
        wanted: Checkpoints in order of preference, at least one.
        entries: All listed checkpoints, in order of saving.
        exact: Use only checkpoints that were saved exactly; an error if the first one was not.
        missing_is_broken: Treat a missing file as damaged. Else it may have been deleted since the
            list was read.

    Raises:
        FileNotFoundError: A file is missing and may have been deleted since.
        BrokenCheckpoint: All are damaged.
        UserError: The first was not saved exactly, or there is too little memory.
    """
    if exact:
        _refuse_rounded(wanted[0], entries)
        wanted = [entry for entry in wanted if entry.tier == "exact"]
    broken: list[str] = []
    for entry in wanted:
        try:
            snapshot = read_entry(folder, entry)
        except FileNotFoundError:
            if not missing_is_broken:
                raise
            broken.append(f"{folder / entry.file} is missing")
        except BrokenCheckpoint as error:
            broken.append(str(error))
        else:
            if broken:
                warnings.warn(
                    f"{'; '.join(broken)}. Taken instead: {entry.file} of step {entry.step}",
                    stacklevel=3,
                )
            return snapshot
    whole = sorted(
        {entry.step for entry in entries if entry not in wanted and _seems_whole(folder, entry)}
    )
    advice = "no other is whole either"
    if whole:
        advice = f"by their headers, those of these steps are whole: {whole}"
    raise BrokenCheckpoint(f"{'; '.join(broken)}; {advice}")


def _refuse_rounded(entry: Entry, entries: Sequence[Entry]) -> None:
    if entry.tier == "exact":
        return
    steps = [other.step for other in entries if other.tier == "exact"]
    exact = "there is no exact checkpoint"
    if steps:
        exact = f"the newest exact checkpoint is that of step {steps[-1]}"
    raise UserError(
        f"{entry.file} was saved with its moments in 8 bits, so training would not repeat exactly; "
        f"{exact}. Save with moments='exact' to have some, or load without exact=True"
    )


def _seems_whole(folder: Path, entry: Entry) -> bool:
    try:
        read_header(folder, entry)
    except UserError:
        return False
    return True


def read_entry(folder: Path, entry: Entry) -> Snapshot:
    """Load a listed checkpoint, if its file is undamaged and the one that was saved.

    Raises:
        FileNotFoundError: The file does not exist (any more).
        BrokenCheckpoint: The file is damaged, or is not the one in the list.
        UserError: There is too little memory.
    """
    path = folder / entry.file
    try:
        read_header(folder, entry)
        return file.read(path)
    except BrokenCheckpoint:
        raise
    except UserError:
        if not path.exists():
            raise FileNotFoundError(path) from None
        raise


def read_header(folder: Path, entry: Entry) -> None:
    """Check that the header of a listed checkpoint is the one that was saved; chunks are not read.

    Errors are those of `read_entry`.
    """
    header = file.read_header(folder / entry.file)
    for name, found, listed in (
        ("step", header.step, entry.step),
        ("sequence number", header.sequence, entry.sequence),
        ("tier", header.tier, entry.tier),
        ("length", header.file_bytes, entry.bytes),
        ("digest", header.digest, entry.digest),
    ):
        if found != listed:
            raise BrokenCheckpoint(
                f"{folder / entry.file} is not the file that was saved: its {name} is {found}, "
                f"{listed} is listed"
            )


def orphans(folder: Path, entries: Sequence[Entry]) -> list[Deletion]:
    """Find files with a store's names that are not listed: remains of saves that never finished."""
    listed = {entry.file for entry in entries}
    found = []
    for name in manifest.names_in(folder):
        if manifest.is_ours(name) and name not in listed and manifest.is_regular(folder / name):
            found.append(Deletion(file=name, bytes=_length(folder / name), reason="orphan"))
    return found


def verify(folder: Path) -> list[Finding]:
    """Read every chunk of every file in the folder.

    The manifest comes first, then the checkpoints in order of saving, then the other files.
    """
    listed, findings = _verify_manifest(folder)
    findings += [_verify_entry(folder, entry) for entry in listed.entries]
    names = manifest.names_in(folder)
    # A writer may have been at work meanwhile: files that it deleted are not missing, and files
    # that it saved are not stray.
    now = {entry.file for entry in _listed_now(folder, listed).entries}
    findings = [
        finding
        for finding in findings
        if finding.entry is None or finding.file in names or finding.file in now
    ]
    known = {lock.NAME, manifest.NAME, MADE_OF, *now, *(finding.file for finding in findings)}
    return findings + [_stray(folder, name) for name in names if name not in known]


def _verify_manifest(folder: Path) -> tuple[Manifest, list[Finding]]:
    try:
        return manifest.read(folder), [Finding(file=manifest.NAME, entry=None, ok=True)]
    except FileNotFoundError:
        reason = _MISSING
    except manifest.Damaged as damage:
        reason = str(damage)
    listed, _ = manifest.rebuild(folder)
    if reason == _MISSING and not listed.entries:
        return listed, []  # nothing has been saved yet
    return listed, [Finding(file=manifest.NAME, entry=None, ok=False, reason=reason)]


def _verify_entry(folder: Path, entry: Entry) -> Finding:
    try:
        parts = read_entry(folder, entry).state.get(PROCESSES, {"size": 1})
        reasons = [problem(folder, parts, rank) for rank in range(parts["size"])]
        reason = next((one for one in reasons if one), "")
    except FileNotFoundError:
        reason = "there is no such file"
    except BrokenCheckpoint as error:
        reason = str(error)
    return Finding(file=entry.file, entry=entry, ok=not reason, reason=reason)


def _stray(folder: Path, name: str) -> Finding:
    if not manifest.is_ours(name):
        ok = True
        reason = "not a file of the store; it is left alone"
    elif not manifest.is_regular(folder / name):
        ok = False
        reason = "not a regular file, although it has a checkpoint's name; it is left alone"
    elif name.endswith(".tmp"):
        ok = True
        reason = "being written, or left by a save that never finished; deleted at the next open"
    else:
        ok = False
        reason = "not listed: its save never finished; deleted at the next open"
    return Finding(file=name, entry=None, ok=ok, reason=reason)


def _listed_now(folder: Path, before: Manifest) -> Manifest:
    try:
        return manifest.read(folder)
    except (FileNotFoundError, manifest.Damaged):
        return before


def _length(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
