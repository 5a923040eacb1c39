"""Processes that each play a cell at a time, on one core.

One that dies is replaced, and its cell is tried once more.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

from trainenv.compare.cells import Row, Task, failed, play, write
from trainenv.compare.contract import Stop
from trainenv.types import UserError

_ASK_STOP = 0.3  # seconds
_TRIES = 2  # of a cell whose process dies
_HOPELESS = 3  # processes that die before they are ready: it is not the methods
_PATIENCE = 10.0  # seconds that a process has to tidy up


@dataclass(kw_only=True)
class _Worker:
    process: SpawnProcess
    line: Connection
    task: Task | None = None
    deaths: int = 0  # of processes that had this task before
    ready: bool = False


class Crew:
    """A number of worker processes.

    Use it in a `with` block: on leaving it they are ended, and the cells in hand dropped.
    """

    def __init__(self, workers: int) -> None:
        self._count = workers
        self._workers: list[_Worker] = []
        self._stillborn = 0

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.line.close()
            worker.process.terminate()  # rows are renamed into place whole: nothing is torn
        for worker in self._workers:
            worker.process.join(_PATIENCE)
            worker.process.kill()
            worker.process.join()

    def work(self, tasks: Sequence[Task], note: Callable[[Row], None], stop: Stop) -> bool:
        """Play `tasks` in order, telling `note` of each row; whether it was stopped before the last.

        Raises:
            UserError: processes die before they have done anything.
        """
        waiting = deque((task, 0) for task in tasks)
        while waiting or any(worker.task for worker in self._workers):
            if stop():
                return True
            while len(self._workers) < self._count and sum(
                worker.task is None for worker in self._workers
            ) < len(waiting):
                self._workers.append(_start())
            for worker in self._workers:
                if worker.task is None and waiting:
                    worker.task, worker.deaths = waiting.popleft()
                    with suppress(OSError):  # it has died: its line says so when it is read
                        worker.line.send(worker.task)
            for line in wait([worker.line for worker in self._workers], timeout=_ASK_STOP):
                worker = next(worker for worker in self._workers if worker.line is line)
                if (task := self._hear(worker, note)) is not None:
                    waiting.appendleft(task)
        return False

    def _hear(self, worker: _Worker, note: Callable[[Row], None]) -> tuple[Task, int] | None:
        """Take in what a worker has to say; a cell that is to be tried again, and how often a process died of it."""
        try:
            row = worker.line.recv()
        except (EOFError, OSError):
            self._bury(worker)
            if worker.task is None:
                return None
            deaths = worker.deaths + worker.ready
            if deaths < _TRIES:
                return worker.task, deaths
            died = f"the process ended with exit code {worker.process.exitcode}, {_TRIES} times"
            note(write(worker.task.folder, failed(worker.task.cell, died)))
            return None
        if row is None:  # its first word: it is there
            worker.ready = True
            return None
        worker.task = None
        note(row)
        return None

    def _bury(self, worker: _Worker) -> None:
        worker.line.close()
        worker.process.join()
        self._workers.remove(worker)
        self._stillborn = 0 if worker.ready else self._stillborn + 1
        if self._stillborn >= _HOPELESS:
            raise UserError(
                f"{self._stillborn} processes ended before they could do anything (exit code {worker.process.exitcode}); see "
                'what they wrote to stderr; a script starts under `if __name__ == "__main__":`; workers=0 needs no processes'
            )


def _start() -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # Not a daemon: a method may start processes of its own.
    process = context.Process(target=_serve, args=(theirs,))
    process.start()
    theirs.close()  # so that its death is the end of the line
    return _Worker(process=process, line=ours)


def _serve(line: Connection) -> None:
    """A worker's life: cells, until nobody is there to ask for one."""
    os.environ["OMP_NUM_THREADS"] = (
        "1"  # read when torch is imported, which takes a while: when it is needed
    )
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the first of them ends the others
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # which deletes the run's folder on the way
    with suppress(OSError):  # nobody is there any more
        line.send(None)
        while True:
            try:
                task: Any = line.recv()
            except EOFError:
                return
            line.send(play(task))
