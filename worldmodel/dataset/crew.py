"""Processes that each make one shard at a time.

One that dies is reported with its trunk and replaced.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from trainenv.types import Fold, UserError
from trainenv.worldmodel.dataset.contract import MakeRun
from trainenv.worldmodel.dataset.design import Design
from trainenv.worldmodel.dataset.store import Shards
from trainenv.worldmodel.dataset.tables import collect
from trainenv.worldmodel.dataset.texts import Texts
from trainenv.worldmodel.dataset.trunks import Trunk

Note = Callable[[str, str, int, float], None]
"""(trunk, what was wrong or "", steps trained, core-seconds)"""

_ASK_STOP = 0.5  # seconds
_HOPELESS = 3  # deaths before anything was made: it is not the trunks


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process needs to know to make any shard."""

    folder: Path
    design: Design
    texts: Texts
    make_run: MakeRun
    fold: Fold | None = None


def make_shard(job: Job, trunk: Trunk) -> tuple[str, int, float]:
    """Make one shard: what was wrong with it ("" if nothing), the optimizer steps trained and the core-seconds."""
    started = time.process_time()
    try:
        tables = collect(trunk, job.design, job.make_run, job.texts, job.fold)
        Shards(job.folder).write(trunk.name, tables)
    except Exception as error:  # whatever a run may raise: the other trunks go on
        return f"{type(error).__name__}: {error}", 0, time.process_time() - started
    return (
        "",
        len(tables["trunk_steps"]) + len(tables["branch_steps"]),
        time.process_time() - started,
    )


@dataclass
class _Worker:
    process: SpawnProcess
    line: Connection
    trunk: str = ""


class Crew:
    """A number of worker processes. Use it in a `with` block: on leaving it they are ended."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job = job
        self._count = workers
        self._workers: list[_Worker] = []

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
            worker.process.terminate()  # a shard is renamed into place whole: nothing is torn
        for worker in self._workers:
            worker.process.join()

    def work(self, trunks: Sequence[Trunk], note: Note, stop: Callable[[], bool]) -> bool:
        """Make the shards of `trunks`; whether it was stopped before the last.

        Raises:
            UserError: the processes die before any of them has made anything.
        """
        waiting = deque(trunks)
        made = 0
        deaths = 0
        while waiting or any(worker.trunk for worker in self._workers):
            if stop():
                return True
            while waiting and len(self._workers) < self._count:
                self._workers.append(self._start())
            for worker in self._workers:
                if not worker.trunk and waiting:
                    self._hand(worker, waiting.popleft())
            for ready in wait([worker.line for worker in self._workers], timeout=_ASK_STOP):
                worker = next(worker for worker in self._workers if worker.line is ready)
                answer = self._answer(worker)
                if answer is None:
                    deaths += 1
                    answer = (f"the process ended with exit code {worker.process.exitcode}", 0, 0.0)
                    self._workers.remove(worker)
                else:
                    made += not answer[0]
                if worker.trunk:
                    note(worker.trunk, *answer)
                worker.trunk = ""
                if deaths >= _HOPELESS and not made:
                    raise UserError(
                        f"{deaths} processes ended before any trunk was made (code {worker.process.exitcode}); see what they "
                        'wrote to stderr; a script starts under `if __name__ == "__main__":`; workers=0 needs no processes'
                    )
        return False

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._job), daemon=True)
        process.start()
        theirs.close()  # so that its death is the end of the line
        return _Worker(process, ours)

    def _hand(self, worker: _Worker, trunk: Trunk) -> None:
        worker.trunk = trunk.name
        with suppress(OSError):  # it has died: the line says so when it is read
            worker.line.send(trunk)

    def _answer(self, worker: _Worker) -> tuple[str, int, float] | None:
        """What a worker reports of its trunk; None if it has died."""
        try:
            answer: tuple[str, int, float] = worker.line.recv()
        except (EOFError, OSError):
            worker.process.join()
            return None
        return answer


def _serve(line: Connection, job: Job) -> None:
    """A worker's life: shards, until nobody is there to ask for one."""
    import torch

    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the first of them ends the others
    torch.set_num_threads(1)
    while True:
        try:
            trunk: Any = line.recv()
        except EOFError:
            return
        line.send(make_shard(job, trunk))
