"""Make this process lack what Windows lacks; what is imported before is left as it is."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence

MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}
CALLS = (
    *("fork", "forkpty", "getuid", "geteuid", "getgid", "getpgid", "killpg", "setsid", "sync"),
    *("pread", "preadv", "pwrite", "pwritev", "posix_fallocate", "posix_fadvise", "fdatasync"),
    *("register_at_fork", "sched_getaffinity", "sched_setaffinity", "statvfs", "waitid", "mkfifo"),
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC"),
)


class Refusing(importlib.abc.MetaPathFinder):
    """A finder that refuses the modules."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Refuse a module of `MODULES`; leave the others to the usual finders."""
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def lose_posix() -> None:
    """Refuse the modules from now on, and delete the calls."""
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Refusing())
    for name in CALLS:
        if hasattr(os, name):
            delattr(os, name)
