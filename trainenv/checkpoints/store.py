"""A folder of checkpoints with one writer and many readers.

Checkpoints are saved in the background, whole or not at all, and the newest few are kept.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args

from trainenv.checkpoints import manifest, reader
from trainenv.checkpoints.background_save import Background, Termination
from trainenv.checkpoints.manifest import Entry
from trainenv.checkpoints.reader import Finding
from trainenv.checkpoints.retention import Deletion, plan, without
from trainenv.checkpoints.writer import FEWER, Writer
from trainenv.tools.disk_errors import as_user_error
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.types import Snapshot, Tier, UserError

OnError = Literal["raise", "warn"]
Word = TypeVar("Word", bound=str)


class CheckpointStore:
    """Checkpoints of one run in a folder: files `cp_STEP.ptz` and their list, `manifest.json`.

        with CheckpointStore("checkpoints", every=100) as store:
            while run.step < 1000:
                before = run.step
                run.advance(50)
                if store.due(before, run.step):
                    store.save(run.snapshot())

    A save runs on a background thread while training continues; the next save waits for it. If it
    fails, the error is raised by the next `save`, `wait`, `close` or end of the `with` block. Every
    other method first waits for the save in progress. A save is listed once the disk has stored it
    for good; one that is not listed counts as never made, whenever the power fails.

    One store writes into a folder at a time: inside `with`, or from the first `save`, `collect` or
    durable `hold` until `close`. Reading takes no lock.

    SIGTERM inside `with`, on the main thread and if its action is the default, ends the block with
    `SystemExit(143)`, so that the last save is finished. Without `with`, SIGTERM ends the process
    at once, as SIGKILL does; the last finished save remains. Any other end of the interpreter waits
    for the save in progress.

    Use a store from one thread at a time. In a child made by `os.fork` it can only read.

    Args:
        folder: Folder of the checkpoints; made when the first store writes in it.
        every: Optimizer steps between checkpoints, used by `due`.
        keep_last: Number of newest checkpoints that are kept. Those with a holder are kept in
            addition.
        moments: Format of the optimizer's moments: `8bit` rounds them, `exact` keeps every bit.
        max_bytes: Limit for all checkpoints together, bytes; None for no limit. The oldest without
            a holder are deleted first, the newest never. During a save its bytes come on top,
            because nothing is deleted before the new checkpoint is stored for good.
        on_error: Action after a failed save: `raise` the error, or `warn` and continue training.
        disk: File system; tests replace it.

    Raises:
        UserError: An argument has a wrong type or is out of range.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int = 1000,
        keep_last: int = 8,
        moments: Tier = "8bit",
        max_bytes: int | None = None,
        on_error: OnError = "raise",
        disk: Disk | None = None,
    ) -> None:
        if not isinstance(folder, str | os.PathLike) or not str(folder) or "\0" in str(folder):
            raise UserError(f"folder must be a path, found {folder!r}; give the folder to save in")
        self.folder = Path(folder).absolute()  # the process may change its directory
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise UserError(
                f"{self.folder} must be a folder to save in, found a file; give another"
            )
        self.every = _positive("every", every, "optimizer steps")
        self.keep_last = _positive("keep_last", keep_last, "checkpoints")
        self.moments = _among("moments", moments, get_args(Tier))
        self.max_bytes = max_bytes
        if max_bytes is not None:
            self.max_bytes = _positive("max_bytes", max_bytes, "bytes (None: no limit)")
        self.on_error = _among("on_error", on_error, get_args(OnError))
        self._background = Background()
        self._termination = Termination()
        self._writer = Writer(self.folder, disk or Disk(), self._background.notes)
        # Holds that are not durable: names of files by holder.
        self._live: dict[str, set[str]] = {}
        self._cap_noted = False

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self.folder)!r}, every {self.every} steps, "
            f"{self.keep_last} kept, moments {self.moments})"
        )

    # ── writing ───────────────────────────────────────────────────────────────────────────────────

    def due(self, before: int, after: int) -> bool:
        """Tell if the steps after `before` up to `after` include a multiple of `every`."""
        return after // self.every > before // self.every

    def save(self, snapshot: Snapshot, *, moments: Tier | None = None, wait: bool = False) -> None:
        """Save a snapshot, after the save before it has ended.

        Args:
            snapshot: Snapshot to save; it must not be changed afterwards.
            moments: Format of the optimizer's moments, if other than the store's.
            wait: Return only when the disk has stored the snapshot for good.

        Raises:
            UserError: The snapshot can't be saved, or another store writes here. Or the save before
                failed; then this one was not begun.
        """
        if not isinstance(snapshot, Snapshot):
            raise UserError(
                "expected a Snapshot to save, as run.snapshot() gives, found "
                f"{type(snapshot).__name__}"
            )
        if type(snapshot.step) is not int or not 0 <= snapshot.step < manifest.MOST:
            raise UserError(
                "the step of a snapshot to save must be an int from 0 on, found "
                f"{snapshot.step!r:.60}"
            )
        tier = self.moments
        if moments is not None:
            tier = _among("moments", moments, get_args(Tier))
        self.wait()
        self._open()
        with self._termination.deferred():
            self._background.start(self._save, snapshot, tier)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the last save has ended.

        Raises:
            UserError: The save failed, and this was not reported before.
        """
        self._background.join()
        self._warn_of_notes()
        if (failure := self._background.take_failure()) is not None:
            if self.on_error == "raise":
                raise failure
            warnings.warn(str(failure), stacklevel=3)

    def hold(self, step: int, holder: str, *, durable: bool = True) -> None:
        """Keep the newest checkpoint of a step until `holder` releases it.

        Args:
            step: Step of the checkpoint.
            holder: Name of the one who wants it kept, 1 to 200 characters.
            durable: Record the hold in the folder, for other processes and later ones. Else it
                counts in this store only.

        Raises:
            UserError: There is no such checkpoint, or the hold could not be recorded.
        """
        if not isinstance(holder, str) or not 0 < len(holder) <= 200:
            raise UserError(f"a holder must be a name of 1 to 200 characters, found {holder!r:.60}")
        self._background.join()
        if durable:
            self._open()
        entry = reader.of_step(self.folder, self._listed(), step)[0]
        if not durable:
            self._live.setdefault(holder, set()).add(entry.file)
        elif holder not in entry.holders:
            self._record_holders({entry: (*entry.holders, holder)}, f"holding {entry.file}")

    def release(self, holder: str, step: int | None = None) -> None:
        """End the holds of `holder` on the checkpoints of one step, or on all.

        The checkpoints themselves remain until the next `save` or `collect`.

        Raises:
            UserError: The end of a durable hold could not be recorded.
        """
        self._background.join()

        def held() -> list[Entry]:
            return [
                entry
                for entry in self._listed()
                if step in (None, entry.step) and holder in entry.holders
            ]

        if held():
            self._open()
            fewer = {
                entry: tuple(other for other in entry.holders if other != holder)
                for entry in held()
            }
            self._record_holders(fewer, f"releasing what {holder!r} held")
        if step is None:
            self._live.pop(holder, None)
        else:
            self._live.get(holder, set()).difference_update(
                entry.file for entry in self._listed() if entry.step == step
            )

    def collect(self) -> list[Deletion]:
        """Delete the files that `preview` lists, and return them.

        Raises:
            UserError: Another store writes here, or the list could not be written.
        """
        self._background.join()
        self._open(sweep=False)
        deletions = self.preview()
        with as_user_error(f"deleting checkpoints from {self.folder}", or_else=FEWER):
            self._writer.drop(deletions)
        self._note_cap()
        self._warn_of_notes()
        return deletions

    # ── reading ───────────────────────────────────────────────────────────────────────────────────

    def load(self, step: int | None = None, *, exact: bool = False) -> Snapshot:
        """Load the checkpoint saved last, or the last one of a step, and verify every checksum.

        If its file is damaged, the one before it is loaded with a warning; with `step`, the one
        before it of the same step.

        Args:
            step: Step of the checkpoint; None for the one saved last.
            exact: Refuse a checkpoint whose moments were rounded.

        Raises:
            UserError: There is no such checkpoint, it is not exact, or there is too little memory.
            BrokenCheckpoint: All such checkpoints are damaged.
        """
        self._background.join()
        entries = self._listed()
        try:
            return reader.load(
                self.folder, reader.of_step(self.folder, entries, step), entries, exact=exact
            )
        except FileNotFoundError:
            # A writer has deleted it since. If a file of the list as it is now is missing, it is
            # lost.
            entries = self._listed()
            return reader.load(
                self.folder,
                reader.of_step(self.folder, entries, step),
                entries,
                exact=exact,
                missing_is_broken=True,
            )

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        self._background.join()
        return sorted({entry.step for entry in self._listed()})

    def entries(self) -> list[Entry]:
        """Return the checkpoints in order of saving, with their durable and other holders."""
        self._background.join()
        entries = []
        for entry in self._listed():
            live = [
                holder
                for holder, files in self._live.items()
                if entry.file in files and holder not in entry.holders
            ]
            entries.append(replace(entry, holders=(*entry.holders, *live)))
        return entries

    def verify(self) -> list[Finding]:
        """Read every chunk of every file in the folder and report all damage."""
        self._background.join()
        return reader.verify(self.folder)

    def preview(self) -> list[Deletion]:
        """List the files that `collect` would delete, with the reasons.

        A file that another process is saving at the moment counts as an orphan.
        """
        entries = self.entries()
        return reader.orphans(self.folder, entries) + self._plan(entries)

    # ── opening and closing ───────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        self._open()
        self._termination.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._termination.deferred():
                self._close(only_warn=error is not None)
        finally:
            self._termination.end()

    def close(self) -> None:
        """Wait for the last save, then let other stores write; errors are those of `wait`."""
        self._close(only_warn=False)

    def _close(self, only_warn: bool) -> None:
        """Close the store; `only_warn` of a failed save where another exception is being raised."""
        if self._writer.is_copy:
            return  # a block that ends in a child made by fork; the store belongs to the parent
        try:
            self.wait()
        except UserError as failure:
            if not only_warn:
                raise
            warnings.warn(str(failure), stacklevel=4)
        finally:
            # If the wait was interrupted, the lock is held until the process ends.
            if not self._background.running:
                self._writer.close()

    # ── internals ─────────────────────────────────────────────────────────────────────────────────

    def _open(self, sweep: bool = True) -> None:
        self._writer.open(sweep)
        self._warn_of_notes()

    def _save(self, snapshot: Snapshot, tier: Tier) -> None:
        """Save a snapshot; called on the background thread."""
        self._writer.save(snapshot, tier, self._plan)
        self._note_cap()

    def _plan(self, entries: Sequence[Entry]) -> list[Deletion]:
        held = {entry.file for entry in entries if entry.holders}.union(*self._live.values())
        return plan(entries, keep_last=self.keep_last, max_bytes=self.max_bytes, held=held)

    def _listed(self) -> Sequence[Entry]:
        entries = self._writer.entries
        if entries is None:
            return reader.read_listed(self.folder)[0].entries
        return entries

    def _record_holders(self, holders: dict[Entry, tuple[str, ...]], action: str) -> None:
        with as_user_error(action, or_else=FEWER):
            changed = [replace(e, holders=holders.get(e, e.holders)) for e in self._listed()]
            self._writer.change(tuple(changed))

    def _note_cap(self) -> None:
        """Note once that the limit in bytes can't be met."""
        entries = self._writer.entries or ()
        total = sum(entry.bytes for entry in without(entries, self._plan(entries)))
        if self.max_bytes is not None and total > self.max_bytes and not self._cap_noted:
            self._cap_noted = True
            self._background.notes.append(
                f"the checkpoints in {self.folder} have {total} bytes, max_bytes allows "
                f"{self.max_bytes}: the newest and those with a holder are kept all the same; "
                "release some, or allow more"
            )

    def _warn_of_notes(self) -> None:
        notes = self._background.notes
        while notes:
            warnings.warn(notes.pop(0), stacklevel=4)


def _positive(name: str, value: Any, unit: str) -> int:
    if type(value) is not int or value < 1:
        raise UserError(f"{name} must be a number of {unit} from 1 on, found {value!r:.60}")
    return value


def _among(name: str, value: Word, choices: Sequence[Word]) -> Word:
    if value not in choices:
        raise UserError(
            f"{name} must be one of {', '.join(map(repr, choices))}, found {value!r:.60}"
        )
    return value
