"""Start of sandboxed processes, and bounded reading from them."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from trainenv.evaluation.sandbox.isolation import Sandbox, filter_of

_CHUNK = 1 << 16  # bytes


@lru_cache(maxsize=1)
def _script() -> str:
    return Path(__file__).with_name("inside.py").read_text(encoding="utf-8")


@contextmanager
def started(
    sandbox: Sandbox,
    job: Mapping[str, Any],
    *,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a sandbox, and kill it with all its children at the end of the block.

    Args:
        sandbox: Isolation of the process.
        job: Role of the process and what it needs, see `inside.py`.
        stdin: Descriptor or file that it reads, or a constant of `subprocess`.
        stdout: The same for its output.
        stderr: The same for its errors.
    """
    found = filter_of(sandbox)
    filter_text = ""
    if sandbox.own_filter:
        filter_text = found.hex()
    whole = {**job, "rlimits": sandbox.limits.rlimits, "seccomp": filter_text}
    with ExitStack() as files:
        job_at = files.enter_context(_in_memory(json.dumps(whole).encode()))
        passed = [job_at]
        filter_at = None
        if found and not sandbox.own_filter:
            filter_at = files.enter_context(_in_memory(found))
            passed.append(filter_at)
        arguments = ["-I", "-S", "-X", "utf8", "-c", _script(), str(job_at)]
        process = subprocess.Popen(
            sandbox.command(arguments, filter_at),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=passed,
            close_fds=True,
            start_new_session=True,
            cwd="/",
            env={},
        )
    try:
        yield process
    finally:
        _kill(process)


def read_bounded(streams: list[IO[bytes]], limit: int, until: float) -> tuple[list[bytes], str]:
    """Read pipes until all are at their end.

    Args:
        streams: Pipes to read from.
        limit: Most bytes of one pipe.
        until: Time at which reading stops, by `time.monotonic`.

    Returns:
        What was read from each pipe, and the reason if reading stopped before the end: `time` or
        `output`.
    """
    parts: dict[int, bytearray] = {stream.fileno(): bytearray() for stream in streams}
    reason = ""
    with selectors.DefaultSelector() as waiting:
        for stream in streams:
            waiting.register(stream, selectors.EVENT_READ)
        while waiting.get_map() and not reason:
            left = until - time.monotonic()
            if left <= 0:
                reason = "time"
                break
            for key, _ in waiting.select(left):
                data = os.read(key.fd, _CHUNK)
                part = parts[key.fd]
                part += data[: limit - len(part)]
                if not data:
                    waiting.unregister(key.fileobj)
                elif len(part) >= limit:
                    reason = "output"
    return [bytes(parts[stream.fileno()]) for stream in streams], reason


@contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    """Yield the descriptor of a file in memory."""
    descriptor = os.memfd_create("trainenv")
    try:
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process; with bubblewrap, its whole namespace ends with it."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    if process.poll() is None:
        process.kill()
    process.wait()
