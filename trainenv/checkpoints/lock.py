"""A lock that lets one process write into a folder; the kernel frees it when the process dies.

The package filelock is not used here: it does not name the holder, and a holder whose lock file was
deleted does not notice. Its older versions, which torch accepts, free the lock of the parent when a
forked child collects its copy.
"""

from __future__ import annotations

import json
import os
import socket
import warnings
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from trainenv.tools import portable
from trainenv.types import UserError

NAME = ".lock"
_MOST = 4096  # bytes of the lock file that are read


class FolderLock:
    """An exclusive lock of a file in a folder.

    The text in the file names the holder, for people; it locks nothing. The file is never deleted:
    a process that locked a deleted file would hold a lock that no other process can see.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """True while this object holds the lock on the file that is now at the path."""
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._file), os.lstat(self.path))
        except OSError:
            return False

    def take(self) -> None:
        """Take the lock without waiting.

        Raises:
            UserError: Another store holds the lock, or the folder can't be locked.
        """
        while not self.held:
            self.release()
            try:
                # Opened for reading and writing: otherwise a named pipe here would block.
                file = portable.open_file(self.path, os.O_RDWR | os.O_CREAT)
            except OSError as error:
                raise UserError(
                    f"{self.folder} must be a folder to save in, but {NAME} in it can't be opened: "
                    f"{error.strerror}; give another folder, or make this one writable"
                ) from None
            try:
                portable.try_lock(file)
            except BlockingIOError:
                holder = _holder(file)
                os.close(file)
                raise UserError(
                    f"{self.folder} is in use: {holder} is saving in it; stop that process, close "
                    "its store, or give another folder"
                ) from None
            except OSError as error:
                os.close(file)
                raise UserError(
                    f"{self.folder} can't be locked: {error.strerror}; "
                    "give a folder on a file system that has locks, as local ones do"
                ) from None
            self._file = file
            _OPEN.add(self)
            if not portable.HAS_LOCKS:
                _warn_of_no_locks()
        self._name_holder()

    def release(self) -> None:
        """Free the lock, if it is held."""
        if self._file is not None:
            file = self._file
            self._file = None
            _OPEN.discard(self)
            with suppress(OSError):
                os.ftruncate(file, 0)
            with suppress(OSError):
                # close() is not enough: a child process may have a copy of the descriptor, which
                # would keep the lock.
                portable.unlock(file)
            os.close(file)

    def forget(self) -> None:
        """Close the descriptor in a child made by fork; the lock then belongs to the parent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _name_holder(self) -> None:
        assert self._file is not None
        since = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        ).encode()
        with suppress(OSError):  # saving reports a full disk
            os.ftruncate(self._file, 0)
            portable.write_at(self._file, text + b"\n", 0)

    def __del__(self) -> None:
        self.release()


def _holder(file: int) -> str:
    """Describe the holder that the lock file names."""
    try:
        found = json.loads(portable.read_at(file, _MOST, 0))
        host = str(found["host"])
        pid = int(found["pid"])
        since = str(found["since"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "an unknown process"
    if pid == os.getpid() and host == socket.gethostname():
        return f"another CheckpointStore of this same process ({pid})"
    return f"process {pid} on {host[:100]!a} (since {since[:40]!a})"


@cache
def _warn_of_no_locks() -> None:
    """Warn once a process."""
    warnings.warn(
        "this system has no file locks, so a second process that saves in the same folder would "
        "not be noticed; give each run a folder of its own",
        stacklevel=2,
    )


_OPEN: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_OPEN):
        lock.forget()
    _OPEN.clear()


portable.after_fork_in_child(_forget_all)
