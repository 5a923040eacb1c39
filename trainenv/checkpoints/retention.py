"""Rules for deleting old checkpoints, as pure functions.

The newest few are kept, and all that have a holder; the rest is limited in bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from trainenv.checkpoints.manifest import Entry

Reason = Literal["retention", "cap", "orphan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """A file to delete, and the reason.

    Attributes:
        file: Name in the folder.
        bytes: Length, bytes.
        reason: `retention` for a checkpoint older than the newest few and without a holder; `cap`
            where the folder would exceed its bytes; `orphan` for the rest of an unfinished save.
        step: Step of the checkpoint; None for an orphan.
    """

    file: str
    bytes: int
    reason: Reason
    step: int | None = None


def plan(
    entries: Sequence[Entry], *, keep_last: int, max_bytes: int | None, held: Collection[str]
) -> list[Deletion]:
    """List the checkpoints to delete, the oldest first.

    Args:
        entries: All checkpoints, in order of saving.
        keep_last: Number of newest checkpoints that are kept, at least 1.
        max_bytes: Limit for all checkpoints together, bytes; None for no limit. To meet it, the
            oldest without a holder are deleted, but never the newest.
        held: Names of the files that have a holder; they are never deleted.
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
    """Return the entries that remain."""
    gone = {deletion.file for deletion in deletions}
    return tuple(entry for entry in entries if entry.file not in gone)


def _deletion(entry: Entry, reason: Reason) -> Deletion:
    return Deletion(file=entry.file, bytes=entry.bytes, reason=reason, step=entry.step)
