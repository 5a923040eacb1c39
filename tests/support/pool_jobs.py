"""Jobs that cost milliseconds; importable by worker processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch


def describe(job: int) -> dict[str, Any]:
    return {
        "job": job,
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "omp": os.environ["OMP_NUM_THREADS"],
    }


def die_of_some(job: tuple[str, Path]) -> str:
    """Ends its process for "always", and the first time for "once"."""
    name, folder = job
    if name == "once" and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "always":
        with (folder / "deaths").open("a") as file:
            file.write("x")
        os._exit(7)
    if name == "raises":
        raise ZeroDivisionError("by hand")
    return name


def clean_up_at_the_end(job: Path) -> None:
    """Runs until it is ended, and leaves a mark then."""
    try:  # the mark below may be seen, and this process ended, before the next line
        (job / "started").touch()
        time.sleep(60)
    finally:
        (job / "cleaned").touch()


class NeverThere:
    """Work that no other process can load."""

    def __reduce__(self) -> Any:
        return _fail, ()

    def __call__(self, job: int) -> int:
        return job


def _fail() -> Any:
    os._exit(3)
