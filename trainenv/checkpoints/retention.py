"""Which checkpoints are kept: the last few, whatever somebody holds, and no more bytes than allowed. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from trainenv.checkpoints.manifest import Entry

Reason = Literal["retention", "cap", "orphan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """A file that goes, and why.

    Attributes:
        file: its name in the folder.
        bytes: its length.
        reason: `retention`: older than the last few, and nobody holds it; `cap`: the folder would
            have more bytes than allowed; `orphan`: left by a save that never finished.
        step: that it was saved at; None for an orphan.
    """

    file: str
    bytes: int
    reason: Reason
    step: int | None = None


def plan(
    entries: Sequence[Entry], *, keep_last: int, max_bytes: int | None, held: Collection[str]
) -> list[Deletion]:
    """What to delete, oldest first.

    Args:
        entries: in order of saving.
        keep_last: how many of the newest are kept, at least 1.
        max_bytes: that all checkpoints together may have. The oldest that nobody holds go first,
            the newest never.
        held: names of the files that somebody holds, which never go.
    """
    retired = [entry for entry in entries[:-keep_last] if entry.file not in held]
    deletions = [_deletion(entry, "retention") for entry in retired]
    left = [entry for entry in entries if entry not in retired]
    total = sum(entry.bytes for entry in left)
    for entry in left[:-1]:
        if max_bytes is None or total <= max_bytes:
            break
        if entry.file not in held:
            deletions.append(_deletion(entry, "cap"))
            total -= entry.bytes
    return deletions


def without(entries: Sequence[Entry], deletions: Sequence[Deletion]) -> tuple[Entry, ...]:
    """The entries that stay."""
    gone = {deletion.file for deletion in deletions}
    return tuple(entry for entry in entries if entry.file not in gone)


def _deletion(entry: Entry, reason: Reason) -> Deletion:
    return Deletion(file=entry.file, bytes=entry.bytes, reason=reason, step=entry.step)
