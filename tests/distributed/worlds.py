"""Worlds of processes for tests: forks of this process that train one model together.

    losses = world(2, train, "ddp")            # what train("ddp") returns in each process

Forks need no imports, so a world of two starts in a few milliseconds. Every process is killed when
the time is up, so that no test can hang.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed.fsdp

import trainenv.distributed.fsdp
import trainenv.loop  # noqa: F401
from trainenv import TrainingRun

_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Ended:
    """End of a process without a result.

    Attributes:
        error: Sentence or type of the exception; empty if it was killed.
        code: Exit code, below 0 for a signal.
        seconds: Time from the start of the world.
    """

    error: str
    code: int | None
    seconds: float


def world(
    size: int, function: Callable[..., Any], *arguments: Any, seconds: float = 100.0
) -> list[Any]:
    """Return the result of a function in each process, or its `Ended`.

    Args:
        size: Number of processes.
        function: Function of the arguments, called in each process.
        arguments: Arguments of it.
        seconds: Time after which every process is killed, which fails the test.
    """
    return worlds(size, [function] * size, *arguments, seconds=seconds)


def worlds(
    size: int, functions: list[Callable[..., Any]], *arguments: Any, seconds: float = 100.0
) -> list[Any]:
    """Do as `world` does, with a function for each process."""
    _warm_up()
    port = _free_port()
    started = time.monotonic()
    pipes = []
    processes = []
    for rank, function in enumerate(functions):
        ours, theirs = _FORK.Pipe(duplex=False)
        process = _FORK.Process(
            target=_run, args=(rank, size, port, theirs, function, arguments), daemon=True
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    found = []
    try:
        for pipe, process in zip(pipes, processes):
            left = max(0.0, seconds - (time.monotonic() - started))
            assert pipe.poll(left), f"a process was still at work after {seconds} seconds"
            answer: Any = Ended("", None, 0.0)
            with suppress(EOFError):  # it was killed
                answer = pipe.recv()
            process.join(10)
            if isinstance(answer, Ended):
                answer = Ended(answer.error, process.exitcode, time.monotonic() - started)
            found.append(answer)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return found


@cache
def _warm_up() -> None:
    """Import in this process what each process of a world would have to import."""
    torch.set_num_threads(1)
    TrainingRun.from_config("tiny", {"steps": 1, "model.width": 8}).advance(1)


def kill_self() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def _run(
    rank: int,
    size: int,
    port: int,
    pipe: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        pipe.send(function(*arguments))
    except BaseException as error:
        pipe.send(Ended(f"{type(error).__name__}: {error}", None, 0.0))
    finally:
        pipe.close()
        os._exit(0)  # the tests of the parent are not to end here too


def _free_port() -> int:
    for _ in range(100):
        port = random.randrange(20000, 60000)
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")
