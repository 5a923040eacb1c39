"""Two ways to isolate a program: bubblewrap, and resource limits alone.

Both start `inside.py` with the interpreter that runs here, without the packages of its environment.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from trainenv.evaluation.sandbox import seccomp
from trainenv.evaluation.sandbox.limits import Limits
from trainenv.types import UserError

_LIBRARIES = ("/lib", "/lib64", "/lib32", "/usr/lib", "/usr/lib64", "/usr/lib32")
_CACHE = "/etc/ld.so.cache"  # where the loader finds libraries outside of its own folders
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


class Sandbox(Protocol):
    """Contract of a way to isolate programs."""

    @property
    def limits(self) -> Limits: ...

    @property
    def own_filter(self) -> bool:
        """True if the process has to put the filter of system calls in force itself."""
        ...

    def command(self, arguments: Sequence[str], filter_at: int | None) -> list[str]:
        """Return the command that starts the interpreter with `arguments`.

        Args:
            arguments: Arguments of the interpreter.
            filter_at: Descriptor with the filter of system calls; None without one.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Bubblewrap:
    """Programs in namespaces of their own, through `bwrap` (bubblewrap 0.5 or later).

    A program sees the interpreter and the system's libraries, read-only, and a private `/tmp` that
    is deleted with it. It has no network, no home folder, no environment, no other processes and no
    capabilities.

    Args:
        limits: Most that one program may use.
        path: The program `bwrap`; searched for by default.

    Raises:
        UserError: There is no `bwrap`.
    """

    limits: Limits = field(default_factory=Limits)
    path: str | None = None

    def __post_init__(self) -> None:
        if shutil.which(self.path or "bwrap") is None:
            raise UserError(
                "generated programs run in a sandbox of bubblewrap: expected the program "
                f"{self.path or 'bwrap'}, found none; install the system package bubblewrap, or "
                "pass RlimitsOnly(without_isolation=True) if the programs may read your files"
            )

    @property
    def own_filter(self) -> bool:
        return False

    def command(self, arguments: Sequence[str], filter_at: int | None) -> list[str]:
        words = [shutil.which(self.path or "bwrap") or "bwrap"]
        words += ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        words += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--clearenv"]
        words += ["--setenv", "PATH", "/usr/bin", "--setenv", "HOME", "/tmp"]
        for path in _visible():
            if os.path.islink(path):
                words += ["--symlink", os.readlink(path), path]
            else:
                words += ["--ro-bind", path, path]
        for device in _DEVICES:
            words += ["--dev-bind", device, device]
        words += ["--size", str(int(self.limits.disk_mb * (1 << 20))), "--tmpfs", "/tmp"]
        words += ["--remount-ro", "/", "--chdir", "/tmp"]
        if filter_at is not None:
            words += ["--seccomp", str(filter_at)]
        return [*words, "--", _interpreter(), *arguments]


@dataclass(frozen=True, kw_only=True)
class RlimitsOnly:
    """Programs as ordinary processes with resource limits: for trusted programs only.

    A program can read every file that you can, and write to your folders. Where there is a filter
    of system calls for the machine, it can start no process, send no signal and open no socket.

    Args:
        without_isolation: True, to say that you accept this.
        limits: Most that one program may use.

    Raises:
        UserError: `without_isolation` is not True, or the system is not Linux.
    """

    without_isolation: bool
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.without_isolation is not True:
            raise UserError(
                "RlimitsOnly does not isolate programs: expected without_isolation=True, found "
                f"{self.without_isolation!r}; use Bubblewrap(), or accept it in these words"
            )
        if not hasattr(os, "memfd_create"):
            raise UserError(
                f"RlimitsOnly needs the resource limits of Linux, found {sys.platform}; "
                "evaluate programs on a Linux machine"
            )

    @property
    def own_filter(self) -> bool:
        return True

    def command(self, arguments: Sequence[str], filter_at: int | None) -> list[str]:
        return [_interpreter(), *arguments]


def filter_of(sandbox: Sandbox) -> bytes:
    """Return the filter of system calls that a sandbox uses; empty where there is none."""
    return seccomp.program()


@lru_cache(maxsize=1)
def _interpreter() -> str:
    """Return the interpreter itself, without the links of an environment."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return os.path.realpath(base)


@lru_cache(maxsize=1)
def _visible() -> tuple[str, ...]:
    """Return the paths that a program sees: interpreter, standard library, system libraries."""
    paths = [*_LIBRARIES, _CACHE, _interpreter()]
    paths += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    folder = sysconfig.get_config_var("LIBDIR") or ""
    for name in ("INSTSONAME", "LDLIBRARY"):
        library = os.path.join(folder, sysconfig.get_config_var(name) or "")
        if os.path.isfile(library):
            paths.append(library)
    found = [path for path in dict.fromkeys(paths) if os.path.exists(path)]
    links = [path for path in found if os.path.islink(path)]
    kept: list[str] = []
    for path in found:
        if path in links or not any(Path(path).is_relative_to(other) for other in kept):
            kept.append(path)
    return tuple(kept)
