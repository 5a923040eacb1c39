"""A disk that fails at any operation of a save: nothing saved is lost, nothing partial is listed, the next save works."""

from __future__ import annotations

import errno
import os
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.small_runs import made, same
from trainenv.checkpoints import reader
from trainenv.checkpoints.store import CheckpointStore
from trainenv.tools.tensor_file.filesystem import Disk
from trainenv.types import UserError


class Faulty(Disk):
    """Fails once, at the operation of a kind with a certain number: before it is done, or after it was."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.fault: tuple[str, int, str] | None = None
        self.struck = False

    def arm(self, kind: str, number: int, how: str) -> None:
        self.counts.clear()
        self.fault, self.struck = (kind, number, how), False

    def disarm(self) -> None:
        self.fault = None

    @contextmanager
    def _may_fail(self, kind: str) -> Iterator[str]:
        """Around an operation; gives how a write should go wrong."""
        self.counts[kind] += 1
        strikes = self.fault is not None and self.fault[:2] == (kind, self.counts[kind])
        how = self.fault[2] if strikes and self.fault is not None else ""
        self.struck |= strikes
        code, _, when = how.partition(" ")
        if code in errno.errorcode.values() and not when:
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        yield how
        if code in errno.errorcode.values():
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    def make_folder(self, folder: Path) -> None:
        with self._may_fail("make_folder"):
            super().make_folder(folder)

    def create(self, path: Path) -> int:
        with self._may_fail("create"):
            return super().create(path)
        raise AssertionError

    def write(self, file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        with self._may_fail("write") as how:
            if how == "short":
                return super().write(file, memoryview(data)[: -(-len(data) // 2)], offset)
            if how == "none":
                return 0
            return super().write(file, data, offset)
        raise AssertionError

    def sync(self, file: int) -> None:
        with self._may_fail("sync"):
            super().sync(file)

    def close(self, file: int) -> None:
        super().close(file)  # Linux closes it whatever it says
        with self._may_fail("close"):
            pass

    def rename(self, source: Path, target: Path) -> None:
        with self._may_fail("rename"):
            super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        with self._may_fail("sync_folder"):
            super().sync_folder(folder)

    def unlink(self, path: Path) -> None:
        with self._may_fail("unlink"):
            super().unlink(path)


class Outcome:
    """Saves with a fault each, in one folder; every save also deletes the oldest checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk = folder, Faulty()
        self.store = CheckpointStore(folder, keep_last=2, moments="exact", disk=self.disk)
        self.step = 0
        for _ in range(3):
            self.save()

    def save(self) -> None:
        self.step += 1
        self.store.save(made(self.step, numel=64), wait=True)

    def operations(self) -> Counter[str]:
        """Count the disk calls of each kind in an undisturbed save."""
        self.disk.arm("", 0, "")
        self.save()
        return self.disk.counts.copy()

    def strike(self, kind: str, number: int, how: str) -> tuple[str, list[str]]:
        """A save with a fault: what it raised, and what it warned of. Then another, undisturbed."""
        before = self.store.entries()
        self.disk.arm(kind, number, how)
        message = ""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.save()
            except UserError as error:
                message = f"{type(error).__name__}: {error}"
        assert self.disk.struck
        self.disk.disarm()
        self.look(acknowledged=before[-1].step if message else self.step)
        # Only where the new list had already taken the old one's place may a save that failed be listed all the same.
        assert not message or self.store.entries() == before or kind in ("rename", "sync_folder")
        assert (
            self.step in self.store.steps() or not (self.folder / f"cp_{self.step}.ptz").exists()
        )  # its space is free again
        assert reader.verify(self.folder)[0].ok  # the list, as it stands on disk
        self.save()
        self.look(acknowledged=self.step)
        assert [entry.step for entry in self.store.entries()] == sorted(
            entry.step for entry in self.store.entries()
        )
        assert self.store.preview() == []  # nothing is left lying about
        return message, [str(one.message) for one in caught]

    def look(self, *, acknowledged: int) -> None:
        """Check that folder and store hold whole checkpoints only, the last acknowledged included."""
        for store in (CheckpointStore(self.folder), self.store):
            entries = store.entries()
            assert entries == self.store.entries()
            assert acknowledged in store.steps()
            assert acknowledged <= store.load().step == entries[-1].step
            assert all(
                same(store.load(entry.step), made(entry.step, numel=64)) for entry in entries
            )
            assert all(finding.ok for finding in store.verify() if finding.entry is not None)


def strike_all(
    tmp_path: Path, kind: str, hows: tuple[str, ...]
) -> list[tuple[str, int, str, str, list[str]]]:
    outcome = Outcome(tmp_path / "store")
    count = outcome.operations()[kind]
    assert count
    return [
        (kind, number, how, *outcome.strike(kind, number, how))
        for how in hows
        for number in range(1, count + 1)
    ]


@pytest.mark.parametrize("kind", ["create", "write", "sync", "close", "rename", "sync_folder"])
def test_a_failing_operation(tmp_path: Path, kind: str) -> None:
    """The last `sync_folder` comes after the save: what it fails at is only noted."""
    hows = (
        ("ENOSPC", "EIO") if kind == "create" else ("ENOSPC", "EIO after")
    )  # no system opens a file and says it did not
    struck = strike_all(tmp_path, kind, hows)
    last = max(number for _, number, *_ in struck)
    for _, number, how, message, warned in struck:
        if kind == "sync_folder" and number == last:
            assert not message
            assert "may come back" in warned[0]
            continue
        assert warned == []
        assert (
            "No space left on device" in message
            if how == "ENOSPC"
            else "Input/output error" in message
        )
        assert (
            "free some space" in message.lower()
            if how == "ENOSPC"
            else "check the disk" in message.lower()
        )
        assert "cp_" in message
        assert ".ptz, is intact" in message


def test_a_failing_deletion_is_noted_and_done_by_the_next_save(tmp_path: Path) -> None:
    for _, _, _, message, warned in strike_all(tmp_path, "unlink", ("EIO", "EACCES after")):
        assert not message
        assert "can't be deleted" in warned[0]


def test_short_writes_are_continued(tmp_path: Path) -> None:
    assert all(
        not message and not warned
        for *_, message, warned in strike_all(tmp_path, "write", ("short",))
    )


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    assert all(
        "took none" in message for *_, message, _ in strike_all(tmp_path, "write", ("none",))
    )


@pytest.mark.parametrize("code", ["EDQUOT", "EROFS", "ENOSPC"])
def test_a_disk_that_keeps_failing(tmp_path: Path, code: str) -> None:
    outcome = Outcome(tmp_path / "store")
    for _ in range(3):
        outcome.disk.arm("write", 1, code)
        with pytest.raises(UserError, match=os.strerror(getattr(errno, code))):
            outcome.save()
        assert outcome.store.load().step == 3
        assert sorted(os.listdir(outcome.folder)) == [
            ".lock",
            "cp_2.ptz",
            "cp_3.ptz",
            "manifest.json",
        ]


@pytest.mark.parametrize(
    "kind", ["make_folder", "create", "write", "sync", "rename", "sync_folder"]
)
def test_opening_on_a_failing_disk_says_so_and_frees_the_lock(tmp_path: Path, kind: str) -> None:
    disk = Faulty()
    disk.arm(kind, 1, "EIO")
    failed = CheckpointStore(tmp_path / "store", disk=disk)
    with pytest.raises(UserError, match="Input/output error"):
        failed.__enter__()
    with CheckpointStore(tmp_path / "store") as store:
        store.save(made(1, numel=64), wait=True)


def test_a_hold_that_cannot_be_noted(tmp_path: Path) -> None:
    outcome = Outcome(tmp_path / "store")
    outcome.disk.arm("write", 1, "ENOSPC")
    with pytest.raises(
        UserError, match=r"holding cp_3.ptz failed: the system reported 'No space left on device'"
    ):
        outcome.store.hold(3, "somebody")
    assert (
        outcome.store.entries()[-1].holders
        == CheckpointStore(tmp_path / "store").entries()[-1].holders
        == ()
    )
    outcome.store.hold(3, "somebody")
    outcome.disk.arm("sync_folder", 1, "EIO")
    with pytest.raises(UserError, match="releasing what 'somebody' held"):
        outcome.store.release("somebody")
    assert outcome.store.entries() == CheckpointStore(tmp_path / "store").entries()


def test_a_collect_that_fails_deletes_nothing(tmp_path: Path) -> None:
    outcome = Outcome(tmp_path / "store")
    store = outcome.store
    store.hold(2, "somebody")
    outcome.save()
    store.release("somebody")
    for kind in ("write", "sync_folder"):
        outcome.disk.arm(kind, 1, "EIO")
        with pytest.raises(UserError, match="deleting checkpoints"):
            store.collect()
        outcome.disk.disarm()
        assert (tmp_path / "store/cp_2.ptz").exists()
        assert store.preview()
    assert [deletion.file for deletion in store.collect()] == ["cp_2.ptz"]
    assert not (tmp_path / "store/cp_2.ptz").exists()


# ── the thread beside ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_failure_comes_up_once_at_the_next_save(tmp_path: Path) -> None:
    outcome = Outcome(tmp_path / "store")
    outcome.disk.arm("write", 2, "ENOSPC")
    outcome.store.save(made(4, numel=64))
    assert outcome.store.steps() == [2, 3]  # who only looks is not told
    with pytest.raises(UserError, match=r"cp_4\.ptz failed.*cp_3\.ptz, is intact"):
        outcome.store.save(made(5, numel=64))
    outcome.store.wait()
    assert outcome.store.steps() == [2, 3]  # the one that was given then was not begun
    outcome.store.save(made(5, numel=64), wait=True)
    assert outcome.store.steps() == [3, 5]


def fails_inside_with(folder: Path, then: Exception | None = None) -> None:
    disk = Faulty()
    with CheckpointStore(folder, disk=disk) as store:
        disk.arm("write", 1, "ENOSPC")
        store.save(made(1, numel=64))
        if then is not None:
            raise then


def test_a_failure_comes_up_at_the_end_of_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No space left on device.*there is none before it"):
        fails_inside_with(tmp_path)
    with CheckpointStore(tmp_path):
        pass  # the lock is free


def test_an_exception_on_its_way_is_not_replaced_by_a_failure(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="No space left"), pytest.raises(KeyError):
        fails_inside_with(tmp_path, then=KeyError())


def test_on_error_warn_lets_the_training_go_on(tmp_path: Path) -> None:
    disk = Faulty()
    with CheckpointStore(tmp_path, disk=disk, on_error="warn") as store:
        store.save(made(1, numel=64), wait=True)
        disk.arm("sync", 1, "EIO")
        store.save(made(2, numel=64))
        with pytest.warns(
            UserWarning,
            match=r"cp_2\.ptz failed: the system reported 'Input/output error'; .*cp_1\.ptz, is intact",
        ):
            store.save(made(3, numel=64))
        assert store.steps() == [1, 3]


def test_a_failure_that_nobody_asks_about_is_a_warning(tmp_path: Path) -> None:
    disk = Faulty()
    store = CheckpointStore(tmp_path, disk=disk)
    store.save(made(1, numel=64), wait=True)
    disk.arm("write", 1, "ENOSPC")
    store.save(made(2, numel=64))
    store.steps()
    with pytest.warns(UserWarning, match=r"cp_2\.ptz failed"):
        del store


def test_a_failed_save_keeps_no_snapshot_in_memory(tmp_path: Path) -> None:
    disk = Faulty()
    store = CheckpointStore(tmp_path, disk=disk)
    store.save(made(1, numel=64), wait=True)
    disk.arm("write", 1, "ENOSPC")
    snapshot = made(2, numel=64)
    alive = weakref.ref(snapshot)
    store.save(snapshot)
    del snapshot
    store.steps()
    assert alive() is None
    with pytest.raises(UserError):
        store.wait()


class Held(Disk):
    """Waits at a file's end until it may go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.waiting = threading.Event()

    def sync(self, file: int) -> None:
        self.waiting.set()
        assert self.go_on.wait(30)
        super().sync(file)


def test_training_goes_on_while_a_save_is_written_and_the_next_save_waits_for_it(
    tmp_path: Path,
) -> None:
    disk = Held()
    with CheckpointStore(tmp_path, disk=disk) as store:
        disk.waiting.clear()
        disk.go_on.clear()
        snapshot = made(1, numel=64)
        alive = weakref.ref(snapshot)
        store.save(snapshot)  # returns
        del snapshot
        assert disk.waiting.wait(30)
        assert CheckpointStore(tmp_path).steps() == []  # not listed before it is there for good
        threading.Timer(0.2, disk.go_on.set).start()
        begun = time.monotonic()
        store.save(made(2, numel=64))
        assert time.monotonic() - begun > 0.1
        assert 1 in CheckpointStore(tmp_path).steps()
        assert alive() is None  # one in hand, one being written, no more
        assert store.steps() == [1, 2]  # waits


def test_a_save_is_written_on_a_thread_that_the_interpreter_waits_for(tmp_path: Path) -> None:
    disk = Held()
    with CheckpointStore(tmp_path, disk=disk) as store:
        disk.waiting.clear()
        disk.go_on.clear()
        store.save(made(1, numel=64))
        assert disk.waiting.wait(30)
        assert [
            thread.daemon for thread in threading.enumerate() if thread.name == "checkpoint"
        ] == [False]
        disk.go_on.set()
