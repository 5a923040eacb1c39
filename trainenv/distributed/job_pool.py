"""Processes that each do one job at a time, on one core each.

    with JobPool(play, workers=4) as pool:
        stopped = pool.run(cells, on_result=keep, on_lost=note_failure)

A process that dies is replaced, and its job is tried again. A job that costs `tries` processes is
reported as lost. Processes are spawned, so the script that starts them needs the usual guard
`if __name__ == "__main__":`, and jobs, work and results must be picklable.
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
from typing import Any, Generic, Self, TypeVar

from trainenv.types import UserError

_ASK_STOP = 0.3  # seconds between two calls of `stop`
_MOST_FAILED_STARTS = 3  # in a row: the fault is not in the jobs
_PATIENCE = 10.0  # seconds that a process has to clean up

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(kw_only=True)
class _Assignment(Generic[Job]):
    """A job, and the number of processes that died while they did it."""

    job: Job
    deaths: int = 0


@dataclass(kw_only=True)
class _Worker(Generic[Job]):
    """A process, the pipe to it, and its job.

    Attributes:
        ready: Flag: the process has started and imported all that it needs.
    """

    process: SpawnProcess
    pipe: Connection
    assignment: _Assignment[Job] | None = None
    ready: bool = False


class JobPool(Generic[Job, Result]):
    """A number of worker processes that share a list of jobs.

    Use it in a `with` block: at its end the processes are ended and their jobs dropped.

    Args:
        work: Function of a job, at the top of a module so that other processes can import it. It
            must catch what a job may raise: an exception ends the process.
        workers: Number of processes, at least 1. Each computes with one thread.
        tries: Number of processes that a job may cost, at least 1.
        daemon: Flag: processes end with the one that started them, even without the `with` block,
            and may not start processes of their own.
    """

    def __init__(
        self, work: Callable[[Job], Result], *, workers: int, tries: int = 2, daemon: bool = False
    ) -> None:
        self._work = work
        self._count = workers
        self._tries = tries
        self._daemon = daemon
        self._workers: list[_Worker[Job]] = []
        self._failed_starts = 0  # in a row

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_PATIENCE)
            worker.process.kill()
            worker.process.join()

    def run(
        self,
        jobs: Sequence[Job],
        on_result: Callable[[Job, Result], None],
        on_lost: Callable[[Job, str], None],
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Do all jobs, in order as processes become free.

        Args:
            jobs: Jobs to do.
            on_result: Function of a job and its result, called as each is done.
            on_lost: Function of a job that cost `tries` processes, and the reason in words.
            stop: Function without arguments, called a few times a second. True ends the run; jobs
                that are being done are dropped.

        Returns:
            Flag: `stop` ended the run before all jobs were done.

        Raises:
            UserError: Three processes in a row died before they were ready.
        """
        waiting = deque(_Assignment(job=job) for job in jobs)
        while waiting or any(worker.assignment for worker in self._workers):
            if stop():
                return True
            self._assign(waiting)
            for pipe in wait([worker.pipe for worker in self._workers], timeout=_ASK_STOP):
                worker = next(worker for worker in self._workers if worker.pipe is pipe)
                self._receive(worker, waiting, on_result, on_lost)
        return False

    def _assign(self, waiting: deque[_Assignment[Job]]) -> None:
        """Start processes for the jobs that wait, and give each free process a job."""
        free = sum(worker.assignment is None for worker in self._workers)
        while len(self._workers) < self._count and free < len(waiting):
            self._workers.append(_start(self._work, daemon=self._daemon))
            free += 1
        for worker in self._workers:
            if worker.assignment is None and waiting:
                worker.assignment = waiting.popleft()
                with suppress(OSError):  # the process has died: reading the pipe will show it
                    worker.pipe.send(worker.assignment.job)

    def _receive(
        self,
        worker: _Worker[Job],
        waiting: deque[_Assignment[Job]],
        on_result: Callable[[Job, Result], None],
        on_lost: Callable[[Job, str], None],
    ) -> None:
        """Read one message of a process; if it has died, put its job back or report it as lost."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._reap(worker)
            self._retry(worker, waiting, on_lost)
            return
        if not worker.ready:  # the first message says only this
            worker.ready = True
            return
        assert worker.assignment is not None
        job = worker.assignment.job
        worker.assignment = None
        on_result(job, message)

    def _reap(self, worker: _Worker[Job]) -> None:
        """Take a dead process off the list.

        Raises:
            UserError: Too many in a row died before they were ready.
        """
        worker.pipe.close()
        worker.process.join()
        self._workers.remove(worker)
        if worker.ready:
            self._failed_starts = 0
            return
        self._failed_starts += 1
        if self._failed_starts >= _MOST_FAILED_STARTS:
            raise UserError(
                f"expected worker processes that start, found {self._failed_starts} in a row that "
                f"ended first (exit code {worker.process.exitcode}); see what they wrote to "
                'stderr, guard the script with `if __name__ == "__main__":`, or set workers=0, '
                "which needs no processes"
            )

    def _retry(
        self,
        worker: _Worker[Job],
        waiting: deque[_Assignment[Job]],
        on_lost: Callable[[Job, str], None],
    ) -> None:
        """Put the job of a dead process first in the queue, or report it as lost."""
        assignment = worker.assignment
        if assignment is None:
            return
        if worker.ready:
            assignment.deaths += 1
        if assignment.deaths < self._tries:
            waiting.appendleft(assignment)
            return
        reason = f"the process ended with exit code {worker.process.exitcode}"
        if self._tries > 1:
            reason += f", {self._tries} times"
        on_lost(assignment.job, reason)


def one_thread() -> None:
    """Make this process compute with one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, which may come later
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _start(work: Callable[[Job], Result], *, daemon: bool) -> _Worker[Job]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=daemon)
    process.start()
    theirs.close()  # so that the death of the process closes the pipe
    return _Worker(process=process, pipe=ours)


def _serve(pipe: Connection, work: Callable[[Any], object]) -> None:
    """Do jobs until the other end of the pipe is closed; the main function of a worker process."""
    one_thread()
    # Ctrl-C reaches all processes; the one that started these ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # An exit runs the clean-up of a job; the default would end the process at once.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with suppress(OSError):  # the pipe was closed
        pipe.send(None)
        while True:
            try:
                job = pipe.recv()
            except EOFError:
                return
            pipe.send(work(job))
