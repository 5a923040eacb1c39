"""Limits of a sandboxed program."""

from __future__ import annotations

from dataclasses import dataclass, fields

from trainenv.types import as_number

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Most that one program may use; each above 0.

    A program is one process with one thread: it can't start others.

    Args:
        wall_s: Wall-clock time, seconds; the program is killed then.
        cpu_s: CPU time, seconds.
        memory_mb: Address space, MiB.
        disk_mb: Files in its private `/tmp`, MiB; they are in memory.
        files: Number of open files.
        output_kb: Output that is kept, KiB; a program that writes more is killed.

    Raises:
        UserError: A limit is not a finite number above 0.
    """

    wall_s: float = 10.0
    cpu_s: int = 5
    memory_mb: int = 512
    disk_mb: int = 8
    files: int = 32
    output_kb: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 1.0
            if field.name == "wall_s":
                least = 0.01
            as_number(getattr(self, field.name), f"the limit {field.name}", least=least)

    @property
    def rlimits(self) -> dict[str, int]:
        """Name of each resource limit of the process → its value."""
        return {
            "RLIMIT_AS": int(self.memory_mb * _MIB),
            "RLIMIT_CORE": 0,
            "RLIMIT_CPU": int(self.cpu_s),
            "RLIMIT_FSIZE": int(self.disk_mb * _MIB),
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_NOFILE": int(self.files),
            "RLIMIT_NPROC": 1,
        }
