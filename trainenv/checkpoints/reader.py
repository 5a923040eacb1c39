"""Reading a folder of checkpoints, for which no lock is needed: a writer may add and delete files meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainenv.checkpoints import MADE_OF, file, lock, manifest
from trainenv.checkpoints.header import BrokenCheckpoint
from trainenv.checkpoints.manifest import Entry, Manifest
from trainenv.checkpoints.retention import Deletion
from trainenv.types import Snapshot, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What `verify` says of a file in the folder.

    Attributes:
        file: its name.
        entry: the checkpoint that it is listed as; None for the manifest and for what is not
            listed.
        ok: nothing is wrong with it.
        reason: what is wrong, or why it is there; empty for a whole checkpoint.
    """

    file: str
    entry: Entry | None
    ok: bool
    reason: str = ""


def read_listed(folder: Path) -> tuple[Manifest, list[str] | None]:
    """The manifest of a folder, and None where it stands there as it is.

    A manifest that is damaged, or missing beside checkpoints, is rebuilt from their headers, with a
    warning; then those that were left out are listed.

    Raises:
        UserError: the folder can't be read, or is another version's.
    """
    try:
        return manifest.read(folder), None
    except FileNotFoundError:
        why = "there is none"
    except manifest.Damaged as damage:
        why = str(damage)
    found, left_out = manifest.rebuild(folder)
    if why != "there is none" or found.entries or left_out:
        listed = [
            f"{len(found.entries)} are listed again",
            *(f"{name} is left out: {left_out[name]}" for name in left_out),
        ]
        warnings.warn(
            f"the list of checkpoints {folder / manifest.NAME} was lost: {why}. From the files themselves {'; '.join(listed)}. "
            f"Who held them is not known: all are kept until release({manifest.REBUILT!r}) or, if left out, set aside",
            stacklevel=3,
        )
    return found, list(left_out)


def of_step(folder: Path, entries: Sequence[Entry], step: int | None) -> list[Entry]:
    """The checkpoints of a step, or all; the newest first.

    Raises:
        UserError: there is none.
    """
    if step is not None and type(step) is not int:
        raise UserError(f"a step must be an int, found {step!r:.60}; give one of steps()")
    if not entries:
        raise UserError(
            f"expected checkpoints in {folder}, found none; save one, or give the folder of a store that did"
        )
    found = [entry for entry in reversed(entries) if step in (None, entry.step)]
    if not found:
        steps = sorted(
            {entry.step for entry in entries}, key=lambda other: abs(other - (step or 0))
        )
        raise UserError(
            f"expected a checkpoint of step {step} in {folder}, found those of {len(steps)} others; nearest: {sorted(steps[:8])}"
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
    """Load the first whole one of `wanted`; a warning says which were not.

    Args:
        folder: that they lie in.
        wanted: in order of preference, at least one.
        entries: all there are, in order of saving.
        exact: take only what was saved exactly; refused where the first is not.
        missing_is_broken: a file that is not there is lost; else it may have been deleted since the
            list was read.

    Raises:
        FileNotFoundError: a file is not there, and may have been deleted since.
        BrokenCheckpoint: none is whole.
        UserError: the first was not saved exactly, or there is too little memory.
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
    advice = (
        f"by their headers, those of these steps are whole: {whole}"
        if whole
        else "no other is whole either"
    )
    raise BrokenCheckpoint(f"{'; '.join(broken)}; {advice}")


def _refuse_rounded(entry: Entry, entries: Sequence[Entry]) -> None:
    if entry.tier != "exact":
        steps = [other.step for other in entries if other.tier == "exact"]
        raise UserError(
            f"{entry.file} was saved with its moments in 8 bits, from which training goes on nearly, not exactly, as before; "
            + (
                f"the newest exact checkpoint is that of step {steps[-1]}"
                if steps
                else "there is no exact checkpoint"
            )
            + ". Save with moments='exact' to have some, or load without exact=True"
        )


def _seems_whole(folder: Path, entry: Entry) -> bool:
    try:
        read_header(folder, entry)
    except UserError:
        return False
    return True


def read_entry(folder: Path, entry: Entry) -> Snapshot:
    """Load a listed checkpoint, if it is whole and the one that was saved.

    Raises:
        FileNotFoundError: it is not there (any more).
        BrokenCheckpoint: it is damaged, or another file than the list says.
        UserError: there is too little memory.
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
    """Whether the front of a listed checkpoint is what was saved; its chunks are not looked at.

    Errors as of `read_entry`.
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
                f"{folder / entry.file} is not the file that was saved: its {name} is {found}, {listed} is listed"
            )


def orphans(folder: Path, entries: Sequence[Entry]) -> list[Deletion]:
    """Files under names of ours that are not listed: the leftovers of saves that never finished."""
    listed = {entry.file for entry in entries}
    found = []
    for name in manifest.names_in(folder):
        if manifest.is_ours(name) and name not in listed and manifest.is_regular(folder / name):
            found.append(Deletion(file=name, bytes=_length(folder / name), reason="orphan"))
    return found


def verify(folder: Path) -> list[Finding]:
    """Read every chunk of every file; the manifest comes first, then the checkpoints in order of saving, then the rest."""
    try:
        listed = manifest.read(folder)
        findings = [Finding(file=manifest.NAME, entry=None, ok=True)]
    except (FileNotFoundError, manifest.Damaged) as error:
        missing = isinstance(error, FileNotFoundError)
        listed, _ = manifest.rebuild(folder)
        if missing and not listed.entries:
            findings = []  # nothing has been saved yet
        else:
            findings = [
                Finding(
                    file=manifest.NAME,
                    entry=None,
                    ok=False,
                    reason="there is none" if missing else str(error),
                )
            ]
    for entry in listed.entries:
        try:
            read_entry(folder, entry)
        except FileNotFoundError:
            findings.append(
                Finding(file=entry.file, entry=entry, ok=False, reason="there is no such file")
            )
        except BrokenCheckpoint as error:
            findings.append(Finding(file=entry.file, entry=entry, ok=False, reason=str(error)))
        else:
            findings.append(Finding(file=entry.file, entry=entry, ok=True))
    names = manifest.names_in(folder)
    # A writer may have gone on meanwhile: what it deleted is not missing, and what it saved is not
    # stray.
    now = {entry.file for entry in _listed_now(folder, listed).entries}
    findings = [
        finding
        for finding in findings
        if finding.entry is None or finding.file in names or finding.file in now
    ]
    known = {lock.NAME, manifest.NAME, MADE_OF, *now, *(finding.file for finding in findings)}
    return findings + [_stray(folder, name) for name in names if name not in known]


def _stray(folder: Path, name: str) -> Finding:
    if not manifest.is_ours(name):
        return Finding(
            file=name, entry=None, ok=True, reason="none of the store's; it is left alone"
        )
    if not manifest.is_regular(folder / name):
        return Finding(
            file=name,
            entry=None,
            ok=False,
            reason="no regular file, under a checkpoint's name; it is left alone",
        )
    if name.endswith(".tmp"):
        return Finding(
            file=name,
            entry=None,
            ok=True,
            reason="being written, or left by a save that never finished; goes at the next open",
        )
    return Finding(
        file=name,
        entry=None,
        ok=False,
        reason="not listed: its save never finished; it goes at the next open",
    )


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
