"""A folder of checkpoints: saved beside the training, whole or not at all, the last few kept; one writer, many readers."""

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
from trainenv.checkpoints.filesystem import Disk
from trainenv.checkpoints.manifest import Entry
from trainenv.checkpoints.reader import Finding
from trainenv.checkpoints.retention import Deletion, plan, without
from trainenv.checkpoints.writer import Writer, told
from trainenv.types import Snapshot, Tier, UserError

OnError = Literal["raise", "warn"]
Word = TypeVar("Word", bound=str)


class CheckpointStore:
    """Checkpoints of one run in a folder: files `cp_STEP.ptz`, and the list of them, `manifest.json`.

        with CheckpointStore("checkpoints", every=100) as store:
            while run.step < 1000:
                before = run.step
                run.advance(50)
                if store.due(before, run.step):
                    store.save(run.snapshot())

    A save is written on a thread beside the training; the next one waits for it. What it fails with
    comes up at the next `save`, `wait`, `close` or end of the `with` block. Every other method
    waits until the save under way has ended. A save is listed once the disk has it for good; one
    that is not listed never happened, whenever the power went.

    One store writes into a folder at a time: inside `with`, or from the first `save`, `collect` or
    durable `hold` until `close`. Reading takes no lock. Inside `with`, on the main thread and where
    SIGTERM would just end the process, it ends the block by `SystemExit(143)` instead, so that the
    last save is finished. Without `with`, SIGTERM ends the process at once, as SIGKILL
    does: what the last finished save wrote is what there is. Any other end of the interpreter waits
        for the save under way.

    A store is used from one thread at a time. In a child made by `os.fork` it only reads.

    Args:
        folder: made when the first store writes in it.
        every: optimizer steps between checkpoints; `due` goes by it.
        keep_last: how many of the newest are kept. Whatever is held is kept beside them.
        moments: how the optimizer's moments are saved: `8bit` rounds them, `exact` leaves every
            bit.
        max_bytes: that all checkpoints together may have; the oldest that nobody holds are deleted
            first, the newest never. While one is saved, its bytes come on top: nothing is deleted
            before it is there for good.
        on_error: whether a save that fails raises, or warns and lets the training go on.
        disk: the file system.

    Raises:
        UserError: an argument makes no sense.
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
        self.max_bytes = (
            None
            if max_bytes is None
            else _positive("max_bytes", max_bytes, "bytes (None: no limit)")
        )
        self.on_error = _among("on_error", on_error, get_args(OnError))
        self._background = Background()
        self._termination = Termination()
        self._writer = Writer(self.folder, Disk() if disk is None else disk, self._background.notes)
        self._live: dict[
            str, set[str]
        ] = {}  # holder → names of files, of holds that are not durable
        self._cap_told = False

    # ── writing ───────────────────────────────────────────────────────────────────────────────────

    def due(self, before: int, after: int) -> bool:
        """Whether the advance from step `before` to step `after` reached a multiple of `every`."""
        return after // self.every > before // self.every

    def save(self, snapshot: Snapshot, *, moments: Tier | None = None, wait: bool = False) -> None:
        """Save a snapshot, once the save before it has ended.

        Args:
            snapshot: nobody may write into it.
            moments: other than the store's.
            wait: return only when the disk has it for good.

        Raises:
            UserError: it can't be saved, or another store writes here; or the save before failed:
                then this one was not begun.
        """
        if not isinstance(snapshot, Snapshot):
            raise UserError(
                f"expected a Snapshot to save, as run.snapshot() gives, found {type(snapshot).__name__}"
            )
        if type(snapshot.step) is not int or not 0 <= snapshot.step < manifest.MOST:
            raise UserError(
                f"the step of a snapshot to save must be an int from 0 on, found {snapshot.step!r:.60}"
            )
        tier = self.moments if moments is None else _among("moments", moments, get_args(Tier))
        self.wait()
        self._open()
        with self._termination.deferred():
            self._background.start(self._save, snapshot, tier)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the last save has ended.

        Raises:
            UserError: it failed, and nobody was told yet.
        """
        self._background.join()
        self._tell_notes()
        if (failure := self._background.take_failure()) is not None:
            if self.on_error == "raise":
                raise failure
            warnings.warn(str(failure), stacklevel=3)

    def hold(self, step: int, holder: str, *, durable: bool = True) -> None:
        """Keep the newest checkpoint of a step until `holder` releases it.

        Args:
            step: that it was saved at.
            holder: who wants it.
            durable: note it in the folder, so that it holds for other processes and later. Else it
                holds in this store only.

        Raises:
            UserError: there is no such checkpoint, or the hold could not be noted.
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
            self._note_holders({entry: (*entry.holders, holder)}, f"holding {entry.file}")

    def release(self, holder: str, step: int | None = None) -> None:
        """End the holds of `holder`, on the checkpoints of one step or on all.

        They stay until the next `save` or `collect`.

        Raises:
            UserError: the end of a durable hold could not be noted.
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
            self._note_holders(fewer, f"releasing what {holder!r} held")
        if step is None:
            self._live.pop(holder, None)
        else:
            self._live.get(holder, set()).difference_update(
                entry.file for entry in self._listed() if entry.step == step
            )

    def collect(self) -> list[Deletion]:
        """Delete what `preview` lists, and list it.

        Raises:
            UserError: another store writes here, or the list could not be written.
        """
        self._background.join()
        self._open(sweep=False)
        deletions = self.preview()
        with told(f"deleting checkpoints from {self.folder}"):
            self._writer.drop(deletions)
        self._note_cap()
        self._tell_notes()
        return deletions

    # ── reading ───────────────────────────────────────────────────────────────────────────────────

    def load(self, step: int | None = None, *, exact: bool = False) -> Snapshot:
        """Load the checkpoint that was saved last, or the last of a step, every checksum verified.

        Where its file is damaged, the one before it (of the same step, if one was asked for) is
        taken, with a warning.

        Args:
            step: that it was saved at.
            exact: refuse a checkpoint whose moments were rounded.

        Raises:
            UserError: there is no such checkpoint, it is not exact, or there is too little memory.
            BrokenCheckpoint: no such checkpoint is whole.
        """
        self._background.join()
        entries = self._listed()
        try:
            return reader.load(
                self.folder, reader.of_step(self.folder, entries, step), entries, exact=exact
            )
        except FileNotFoundError:
            # a writer deleted it since; what the list names now is there, or else it was lost
            entries = self._listed()
            return reader.load(
                self.folder,
                reader.of_step(self.folder, entries, step),
                entries,
                exact=exact,
                missing_is_broken=True,
            )

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, ascending."""
        self._background.join()
        return sorted({entry.step for entry in self._listed()})

    def entries(self) -> list[Entry]:
        """The checkpoints in order of saving, with all who hold them, durably or not."""
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
        """Read every chunk of every file in the folder, and say what is wrong."""
        self._background.join()
        return reader.verify(self.folder)

    def preview(self) -> list[Deletion]:
        """What `collect` would delete, and why.

        What another process is saving just now counts as an orphan.
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
                self._close(quiet=error is not None)
        finally:
            self._termination.end()

    def close(self) -> None:
        """Wait for the last save, and let other stores write in the folder. Errors as of `wait`."""
        self._close(quiet=False)

    def _close(self, quiet: bool) -> None:
        """Close; where an exception is on its way already, a failure of the last save is a warning beside it."""
        if self._writer.is_copy:
            return  # a block that ends in a child made by fork: nothing in it is the child's
        try:
            self.wait()
        except UserError as failure:
            if not quiet:
                raise
            warnings.warn(str(failure), stacklevel=4)
        finally:
            if (
                not self._background.running
            ):  # the wait was interrupted: the lock stays until the process ends
                self._writer.close()

    # ── the inside ────────────────────────────────────────────────────────────────────────────────

    def _open(self, sweep: bool = True) -> None:
        self._writer.open(sweep)
        self._tell_notes()

    def _save(self, snapshot: Snapshot, tier: Tier) -> None:
        """A save, on its own thread."""
        self._writer.save(snapshot, tier, self._plan)
        self._note_cap()

    def _plan(self, entries: Sequence[Entry]) -> list[Deletion]:
        held = {entry.file for entry in entries if entry.holders}.union(*self._live.values())
        return plan(entries, keep_last=self.keep_last, max_bytes=self.max_bytes, held=held)

    def _listed(self) -> Sequence[Entry]:
        entries = self._writer.entries
        return reader.read_listed(self.folder)[0].entries if entries is None else entries

    def _note_holders(self, holders: dict[Entry, tuple[str, ...]], what: str) -> None:
        with told(what):
            self._writer.change(
                tuple(replace(e, holders=holders[e]) if e in holders else e for e in self._listed())
            )

    def _note_cap(self) -> None:
        """Say once that the cap can't be met."""
        entries = self._writer.entries or ()
        total = sum(entry.bytes for entry in without(entries, self._plan(entries)))
        if self.max_bytes is not None and total > self.max_bytes and not self._cap_told:
            self._cap_told = True
            self._background.notes.append(
                f"the checkpoints in {self.folder} have {total} bytes, max_bytes allows {self.max_bytes}: the newest, and those "
                "that somebody holds, are kept all the same; release some, or allow more"
            )

    def _tell_notes(self) -> None:
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
