"""Changes to a folder of checkpoints.

Order matters: first the new file is written, then the list, and only then are old files deleted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from trainenv.checkpoints import file, manifest, reader
from trainenv.checkpoints.lock import FolderLock
from trainenv.checkpoints.manifest import Entry, Manifest
from trainenv.checkpoints.retention import Deletion, without
from trainenv.tools.disk_errors import as_user_error, cause, remedy
from trainenv.tools.tensor_file import chunks
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.types import Snapshot, Tier, UserError

Plan = Callable[[Sequence[Entry]], list[Deletion]]
FEWER = "a lower keep_last or max_bytes keeps fewer"
"""Another way to free space in a folder of checkpoints."""


class Writer:
    """The only object that changes a folder; it holds the folder's lock and the current list.

    Attributes:
        notes: Messages to the user about problems in which nothing was lost.
    """

    def __init__(self, folder: Path, disk: Disk, notes: list[str]) -> None:
        self.folder = folder
        self.notes = notes
        self._disk = disk
        self._lock = FolderLock(folder)
        self._pid = os.getpid()
        self._listed = Manifest()
        # Names of files that are no longer listed but may still exist.
        self._obsolete: set[str] = set()

    @property
    def entries(self) -> tuple[Entry, ...] | None:
        """The checkpoints in order of saving; None without the lock: then read the folder."""
        if not self._lock.held:
            return None
        return self._listed.entries

    @property
    def is_copy(self) -> bool:
        """True in a child made by fork, which may only read."""
        return os.getpid() != self._pid

    def open(self, sweep: bool = True) -> None:
        """Take the lock, read the list and delete what unfinished saves left; no-op if open.

        Raises:
            UserError: Another store writes here, this is a child made by fork, or the folder can't
                be written.
        """
        if self.is_copy:
            raise UserError(
                "this process is a child made by fork, in which a store only reads; "
                "open another store in it"
            )
        if self._lock.held:
            return
        with as_user_error(f"opening {self.folder} to save in it", or_else=FEWER):
            self._disk.make_folder(self.folder)
            self._lock.take()
            try:
                self._listed, left_out = reader.read_listed(self.folder)
                self._obsolete = set()
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
        """Write a checkpoint, list it without those that `plan` deletes, then delete these.

        Raises:
            UserError: The save failed. The list is as it was before.
        """
        before = self._listed.entries
        sequence = self._listed.next_sequence
        name = self.name_for(snapshot.step)
        # The number is used up even if the save fails.
        self._listed = replace(self._listed, next_sequence=sequence + 1)
        try:
            entries = (*before, self._write(snapshot, name, tier, sequence))
            self.drop(plan(entries), entries)
        except BaseException as error:
            self._undo(name)
            if not isinstance(error, OSError | MemoryError):
                raise
            intact = "there is none before it"
            if before:
                intact = f"the one before it, {before[-1].file}, is intact"
            # No traceback is kept: its frames would keep the snapshot in memory.
            raise UserError(
                f"saving {self.folder / name} failed: {cause(error)}; {intact}. "
                f"{remedy(error, or_else=FEWER)}"
            ) from None

    def name_for(self, step: int) -> str:
        """Return the name that the next save of a step gives its file."""
        name = manifest.checkpoint_name(step)
        if os.path.lexists(self.folder / name):  # the run was rewound and reached the step again
            return manifest.checkpoint_name(step, self._listed.next_sequence)
        return name

    def drop(self, deletions: Sequence[Deletion], entries: Sequence[Entry] | None = None) -> None:
        """Take `deletions` off the list (`entries`, or the current one), then delete the files.

        A file that can't be deleted is only noted.

        Raises:
            OSError: The list could not be written; then nothing is deleted.
        """
        if entries is None:
            entries = self._listed.entries
        self.change(without(entries, deletions))
        self._delete(deletion.file for deletion in deletions)

    def change(self, entries: tuple[Entry, ...]) -> None:
        """Make `entries` the list.

        Raises:
            OSError: The list could not be written.
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
            chunks.write_whole(self.folder / manifest.NAME, new.to_bytes(), self._disk)
        except OSError:
            # The rename may have succeeded before the failure. Then all readers see the new list,
            # but a power cut may undo it: files that only the old list names are kept until the
            # next list has been written for good.
            if self._is_on_disk(new.entries):
                self._adopt(new)
            raise
        self._adopt(new)

    def _adopt(self, new: Manifest) -> None:
        self._obsolete |= {entry.file for entry in self._listed.entries}
        self._obsolete -= {entry.file for entry in new.entries}
        self._listed = new

    def _is_on_disk(self, entries: tuple[Entry, ...]) -> bool:
        """Tell if the list on disk is known to be this one."""
        try:
            return manifest.read(self.folder).entries == entries
        except (OSError, manifest.Damaged, UserError):
            return False

    def _undo(self, name: str) -> None:
        """Delete the file of a failed save, unless the list on disk may name it."""
        if name in {entry.file for entry in self._listed.entries}:
            return
        self._obsolete.add(name)
        if self._is_on_disk(self._listed.entries):
            with suppress(OSError):
                self._disk.unlink(self.folder / name)
                self._obsolete.discard(name)

    def _set_aside(self, names: Iterable[str]) -> None:
        """Rename files that can't be read, so that no store deletes them.

        After the loss of the list such a file may be a saved checkpoint that was damaged, not only
        the remains of an unfinished save.
        """
        for name in names:
            if manifest.is_regular(self.folder / name):
                self._disk.rename(self.folder / name, self.folder / f"{name}.unreadable")

    def _delete(self, names: Iterable[str]) -> None:
        """Delete files that are not listed, and those that could not be deleted before."""
        self._obsolete |= set(names)
        deleted = False
        for name in sorted(self._obsolete):
            try:
                self._disk.unlink(self.folder / name)
                self._obsolete.discard(name)
                deleted = True
            except OSError as error:
                self.notes.append(
                    f"{self.folder / name} is no longer needed, but can't be deleted: "
                    f"{cause(error)}"
                )
        if deleted:
            try:
                self._disk.sync_folder(self.folder)
            except OSError as error:
                self.notes.append(f"files deleted from {self.folder} may come back: {cause(error)}")
