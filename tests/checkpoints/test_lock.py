"""One writer a folder: refused at once while it lives, let in at once when it is dead, whatever it left."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainenv.checkpoints.lock import FolderLock
from trainenv.types import UserError


@contextmanager
def forked(act: Callable[[], object]) -> Iterator[int]:
    """A child that has done something and then waits to be killed, at the latest when the block ends."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of forking beside threads: the child touches none
        child = os.fork()
    if not child:
        try:
            act()
            os.write(writer, b"x")
            while True:
                time.sleep(60)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"x", "the child failed"
        yield child
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def refusal(folder: Path) -> str:
    begun = time.monotonic()
    with pytest.raises(UserError) as refused:
        FolderLock(folder).take()
    assert time.monotonic() - begun < 1
    return str(refused.value)


def test_one_at_a_time_in_one_process(tmp_path: Path) -> None:
    one, two = FolderLock(tmp_path), FolderLock(tmp_path)
    one.take()
    one.take()
    assert one.held
    assert f"another CheckpointStore of this same process ({os.getpid()})" in refusal(tmp_path)
    assert not two.held
    one.release()
    one.release()
    assert not one.held
    two.take()
    two.release()


def test_a_folder_is_one_by_whatever_path(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    one = FolderLock(tmp_path / "real")
    one.take()
    refusal(tmp_path / "link")


def test_a_lock_nobody_refers_to_is_free(tmp_path: Path) -> None:
    one = FolderLock(tmp_path)
    one.take()
    del one
    gc.collect()
    FolderLock(tmp_path).take()


def test_a_living_holder_in_another_process_is_named(tmp_path: Path) -> None:
    with forked(FolderLock(tmp_path).take) as child:
        assert f"process {child} on " in refusal(tmp_path)
        assert "stop that" in refusal(tmp_path)


def test_a_dead_holder_never_blocks(tmp_path: Path) -> None:
    with forked(FolderLock(tmp_path).take) as child:
        refusal(tmp_path)
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert (
            json.loads((tmp_path / ".lock").read_bytes())["pid"] == child
        )  # what it left says that it holds the lock
        FolderLock(tmp_path).take()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    one = FolderLock(tmp_path)
    one.take()

    def child() -> None:
        assert not one.held
        one.release()

    with forked(child):
        assert one.held  # the child that closed its copy did not free it
        refusal(tmp_path)
        one.release()
        FolderLock(tmp_path).take()


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    one = FolderLock(tmp_path)

    def parent() -> None:
        one.take()
        if not os.fork():
            os.write(writer, b"%d" % os.getpid())
            while True:
                time.sleep(60)
        time.sleep(0.01)

    with forked(parent) as child:
        grandchild = int(os.read(reader, 20))
        try:
            refusal(tmp_path)
            os.kill(child, signal.SIGKILL)
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            os.kill(grandchild, 0)  # it lives
            FolderLock(tmp_path).take()
        finally:
            os.kill(grandchild, signal.SIGKILL)


@pytest.mark.parametrize(
    "left",
    [
        b"",
        b"{",
        b"[]",
        b'{"pid": "x"}',
        b'{"host": 1, "pid": null, "since": 2}',
        b"[" * 4000,
        b"\xff\0",
    ],
)
def test_whatever_stands_in_the_file_the_lock_is_free(tmp_path: Path, left: bytes) -> None:
    (tmp_path / ".lock").write_bytes(left)
    one = FolderLock(tmp_path)
    one.take()
    (tmp_path / ".lock").write_bytes(left)
    assert "an unknown process" in refusal(tmp_path)


def test_a_holder_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    one = FolderLock(tmp_path)
    one.take()
    (tmp_path / ".lock").write_text(
        json.dumps({"host": "\x1b[31m" + "x" * 1000, "pid": 1, "since": "now\n"})
    )
    message = refusal(tmp_path)
    assert message.isprintable()
    assert len(message) < 600


def test_a_lock_file_deleted_by_hand_is_noticed(tmp_path: Path) -> None:
    one, two = FolderLock(tmp_path), FolderLock(tmp_path)
    one.take()
    (tmp_path / ".lock").unlink()
    assert not one.held
    two.take()
    with pytest.raises(UserError, match="in use"):
        one.take()
    two.release()
    one.take()
    assert one.held


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ".lock"
    path.symlink_to(tmp_path / "elsewhere") if kind == "link" else path.mkdir()
    with pytest.raises(UserError, match=r"\.lock in it can't be opened"):
        FolderLock(tmp_path).take()
    assert not (tmp_path / "elsewhere").exists()


def test_a_pipe_in_its_place_makes_nobody_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    one = FolderLock(tmp_path)
    one.take()
    refusal(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        FolderLock(tmp_path / "none").take()
