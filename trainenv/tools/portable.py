"""Calls of the operating system that Windows lacks, each with what takes its place there.

Without `fcntl`, a file is locked by `msvcrt`; without both, nothing is locked. Folders are not
synced where they can't be opened: after a power cut, a rename of the last moments may be undone.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

_LOCKED_BYTE = (
    1 << 30
)  # behind what a lock file says: msvcrt keeps others from reading what it locks
_OPTIONAL = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
_seeking = threading.Lock()  # where a file has one position for all threads


def _module(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:
        return None


_fcntl = _module("fcntl")
_msvcrt = _module("msvcrt")
HAS_LOCKS = bool(_fcntl or _msvcrt)
"""False where `try_lock` locks nothing."""


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def open_file(path: Path, flags: int) -> int:
    """Open a file without following a link in its place, and without waiting where it is a pipe.

    Args:
        path: The file.
        flags: Those of `os.open` that every system has; what is created has mode 644.

    Raises:
        OSError: It can't be opened, with `errno.ELOOP` where a link is in its place.
    """
    if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    for name in _OPTIONAL:
        flags |= getattr(os, name, 0)
    return os.open(path, flags, 0o644)


def read_at(file: int, count: int, offset: int) -> bytes:
    """Read up to `count` bytes at `offset`; threads may do so at once."""
    if hasattr(os, "pread"):
        return os.pread(file, count, offset)
    with _seeking:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, count)


def write_at(file: int, data: bytes | bytearray | memoryview, offset: int) -> int:
    """Write at `offset`; returns the count of bytes that the system took, which may be fewer."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, offset)
    with _seeking:
        os.lseek(file, offset, os.SEEK_SET)
        return os.write(file, data)


def sync_file(path: Path) -> None:
    """Wait until a file has reached the device."""
    with path.open("r+b") as file:  # Windows refuses to sync what was opened for reading
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in a folder last, where folders can be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


# ── locks ───────────────────────────────────────────────────────────────────────────────────────


def try_lock(file: int) -> None:
    """Lock an open file, at once or not at all; the system unlocks it when its holder dies.

    Raises:
        BlockingIOError: It is locked, by this process or another.
        OSError: Its file system has no locks.
    """
    if _fcntl is not None:
        _fcntl.flock(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    elif _msvcrt is not None:
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        try:
            _msvcrt.locking(file, _msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from None


def unlock(file: int) -> None:
    """Free a lock that `try_lock` took."""
    if _fcntl is not None:
        _fcntl.flock(file, _fcntl.LOCK_UN)
    elif _msvcrt is not None:
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        _msvcrt.locking(file, _msvcrt.LK_UNLCK, 1)


# ── processes ───────────────────────────────────────────────────────────────────────────────────


def after_fork_in_child(act: Callable[[], None]) -> None:
    """Have `act` called in each child made by fork; nothing to do where there is no fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)


def cores() -> int:
    """Count the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def user_id() -> int:
    """The user's number, as `os.stat` has it of files; 0 where users have none."""
    return os.getuid() if hasattr(os, "getuid") else 0
