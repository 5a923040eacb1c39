"""Changing a folder of checkpoints: first the file, then the list, and only then are superfluous files deleted."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from trainenv.checkpoints import file, manifest, reader
from trainenv.checkpoints.filesystem import Disk
from trainenv.checkpoints.lock import FolderLock
from trainenv.checkpoints.manifest import Entry, Manifest
from trainenv.checkpoints.retention import Deletion, without
from trainenv.types import Snapshot, Tier, UserError

Plan = Callable[[Sequence[Entry]], list[Deletion]]
_REMEDIES = {
    errno.ENOSPC: "free some space (a lower keep_last or max_bytes keeps fewer)",
    errno.EDQUOT: "free some of your quota (a lower keep_last or max_bytes keeps fewer)",
    errno.EIO: "look after the disk, or give a folder on another",
    errno.EROFS: "make the disk writable, or give a folder on another",
    errno.ENOTDIR: "give another folder",
    errno.EACCES: "make the folder writable, or give another",
}


class Writer:
    """The one that may change a folder: holds its lock, and with it the list that counts.

    Attributes:
        notes: what went wrong without anything being lost, for the user.
    """

    def __init__(self, folder: Path, disk: Disk, notes: list[str]) -> None:
        self.folder = folder
        self.notes = notes
        self._disk = disk
        self._lock = FolderLock(folder)
        self._pid = os.getpid()
        self._listed = Manifest()
        # names of files that the list has dropped, and that may still be there
        self._doomed: set[str] = set()

    @property
    def entries(self) -> tuple[Entry, ...] | None:
        """The checkpoints, in order of saving; None while the lock is not held: then the folder must be read."""
        return self._listed.entries if self._lock.held else None

    @property
    def is_copy(self) -> bool:
        """Whether this process is a child made by fork, which may only read."""
        return os.getpid() != self._pid

    def open(self, sweep: bool = True) -> None:
        """Take the lock, read the list and delete the leftovers of saves that never finished; at once where it is held already.

        Raises:
            UserError: another store writes here, this is a child made by fork, or the folder can't
                be written.
        """
        if self.is_copy:
            raise UserError(
                "this process is a child made by fork, in which a store only reads; open another store in it"
            )
        if self._lock.held:
            return
        with told(f"opening {self.folder} to save in it"):
            self._disk.make_folder(self.folder)
            self._lock.take()
            try:
                self._listed, left_out = reader.read_listed(self.folder)
                self._doomed = set()
                if left_out is not None:
                    self._set_aside(left_out)
                    self._commit(self._listed)
                if sweep:
                    self._delete(
                        orphan.file for orphan in reader.orphans(self.folder, self._listed.entries)
                    )
            except BaseException:
                self._lock.release()
                raise

    def close(self) -> None:
        self._lock.release()

    def save(self, snapshot: Snapshot, tier: Tier, plan: Plan) -> None:
        """Write a checkpoint, list it without what `plan` makes superfluous, then delete that.

        Raises:
            UserError: it failed. What was listed before is listed still.
        """
        before = self._listed.entries
        sequence = self._listed.next_sequence
        name = manifest.checkpoint_name(snapshot.step)
        if os.path.lexists(self.folder / name):  # history was rewound and came by again
            name = manifest.checkpoint_name(snapshot.step, sequence)
        self._listed = replace(
            self._listed, next_sequence=sequence + 1
        )  # used up, whether or not it succeeds
        try:
            entries = (*before, self._write(snapshot, name, tier, sequence))
            self.drop(plan(entries), entries)
        except BaseException as error:
            self._undo(name)
            if not isinstance(error, OSError | MemoryError):
                raise
            intact = (
                f"the one before it, {before[-1].file}, is intact"
                if before
                else "there is none before it"
            )
            # No traceback is kept: its frames would keep the snapshot.
            raise UserError(
                f"saving {self.folder / name} failed: {_said(error)}; {intact}. {_remedy(error)}"
            ) from None

    def drop(self, deletions: Sequence[Deletion], entries: Sequence[Entry] | None = None) -> None:
        """Make `entries`, or those there are, without `deletions` the list; then delete their files.

        Raises:
            OSError: the list could not be written; then nothing is deleted. A file that can't be
                deleted is only noted.
        """
        entries = self._listed.entries if entries is None else entries
        self.change(without(entries, deletions))
        self._delete(deletion.file for deletion in deletions)

    def change(self, entries: tuple[Entry, ...]) -> None:
        """Make `entries` the list.

        Raises:
            OSError: it could not be written.
        """
        if entries != self._listed.entries:
            self._commit(replace(self._listed, entries=entries))

    def _write(self, snapshot: Snapshot, name: str, tier: Tier, sequence: int) -> Entry:
        path = self.folder / name
        try:
            header = file.write(snapshot, path, tier=tier, sequence=sequence, disk=self._disk)
        except UserError as refusal:
            if tier == "exact":
                raise
            header = file.write(snapshot, path, tier="exact", sequence=sequence, disk=self._disk)
            self.notes.append(f"{path} was saved with exact moments, not in 8 bits: {refusal}")
        return Entry(
            file=name,
            step=header.step,
            sequence=header.sequence,
            tier=header.tier,
            bytes=header.file_bytes,
            digest=header.digest,
        )

    def _commit(self, new: Manifest) -> None:
        try:
            file.write_whole(self.folder / manifest.NAME, new.to_bytes(), self._disk)
        except OSError:
            # The rename may have come before what failed. Then the new list is the one that
            # everybody sees, but it may not last: files that only the old one lists stay until the
            # next list is there for good.
            if self._stands(new.entries):
                self._adopt(new)
            raise
        self._adopt(new)

    def _adopt(self, new: Manifest) -> None:
        self._doomed |= {entry.file for entry in self._listed.entries}
        self._doomed -= {entry.file for entry in new.entries}
        self._listed = new

    def _stands(self, entries: tuple[Entry, ...]) -> bool:
        """Whether the list on disk is known to be this one."""
        try:
            return manifest.read(self.folder).entries == entries
        except (OSError, manifest.Damaged, UserError):
            return False

    def _undo(self, name: str) -> None:
        """After a save that failed: delete its file, unless it may be listed on disk."""
        if name in {entry.file for entry in self._listed.entries}:
            return
        self._doomed.add(name)
        if self._stands(self._listed.entries):
            with suppress(OSError):
                self._disk.unlink(self.folder / name)
                self._doomed.discard(name)

    def _set_aside(self, names: Iterable[str]) -> None:
        """Where the list was lost, files that can't be read are no leftovers: give them names under which nobody deletes them."""
        for name in names:
            if manifest.is_regular(self.folder / name):
                self._disk.rename(self.folder / name, self.folder / f"{name}.unreadable")

    def _delete(self, names: Iterable[str]) -> None:
        """Delete files that are not listed, and those that could not be deleted before."""
        self._doomed |= set(names)
        deleted = False
        for name in sorted(self._doomed):
            try:
                self._disk.unlink(self.folder / name)
                self._doomed.discard(name)
                deleted = True
            except OSError as error:
                self.notes.append(
                    f"{self.folder / name} is no longer needed, but can't be deleted: {_said(error)}"
                )
        if deleted:
            try:
                self._disk.sync_folder(self.folder)
            except OSError as error:
                self.notes.append(f"files deleted from {self.folder} may come back: {_said(error)}")


@contextmanager
def told(what: str) -> Iterator[None]:
    """An `OSError` inside becomes a `UserError` that says what could not be done, and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} failed: {_said(error)}. {_remedy(error)}") from None


def _said(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"the system said {error.strerror or str(error)!r}"
    return "there is too little memory"


def _remedy(error: BaseException) -> str:
    remedy = _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else "free some memory"
    return f"{(remedy or 'mend that').capitalize()}, then try again"
