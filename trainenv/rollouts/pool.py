"""Worker processes that hold forks of a run, as seen from the process of the run.

`trainenv.rollouts.remote` puts forks into them.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trainenv.rollouts.worker import Answer, Command, serve
from trainenv.types import UserError

if TYPE_CHECKING:
    from typing import Self

    from trainenv.config.schema import RunConfig

_PATIENCE = 5.0  # seconds that a process has to end


class Lost(Exception):
    """A worker has ended.

    Attributes:
        exitcode: of the process; −N: by signal N.
    """

    def __init__(self, exitcode: int | None) -> None:
        super().__init__(f"the worker ended with exit code {str(exitcode).replace('-', '−')}")
        self.exitcode = exitcode


class Worker:
    """One process.

    It is sent a command at a time, and answers each for every fork that it is for.
    """

    def __init__(self, config: RunConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=serve, args=(theirs, config), daemon=True
        )
        with _no_script():
            self._process.start()
        theirs.close()  # so that its death is the end of the line
        self.lost: Lost | None = None
        self._alike: dict[str, str] = {}

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.lost is None and self._process.is_alive()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    def check(self, alike: Mapping[str, str]) -> None:
        """Wait until it has built the run.

        Args:
            alike: `parts_digest` of the run that it is to hold forks of.

        Raises:
            Lost: it has ended.
            UserError: it can't build the run, or builds another.
        """
        self._alike = self._alike or self.receive()
        if "error" in self._alike:
            raise UserError(f"worker processes can't build the run ({self._alike['error']})")
        if odd := [name for name in alike if self._alike.get(name) != alike[name]]:
            raise UserError(
                f"worker processes build a run with another {', '.join(odd)}; state it in the configuration"
            )

    def send(self, command: Command, arguments: Mapping[int, Any]) -> None:
        """Have a command done for the forks with these numbers; `receive` what comes of it before the next."""
        if self.lost is None:
            try:
                self._line.send((command, dict(arguments)))
            except OSError:
                self._bury()

    def receive(self) -> Any:
        """What it answers, by number.

        Raises:
            Lost: it has ended.
        """
        if self.lost is None:
            try:
                return self._line.recv()
            except (EOFError, OSError):
                self._bury()
        assert self.lost is not None
        raise self.lost

    def end(self) -> None:
        """End the process, whatever it is at."""
        self._line.close()
        self._process.terminate()
        self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()

    def _bury(self) -> None:
        self._process.join(_PATIENCE)
        self.end()
        self.lost = Lost(self._process.exitcode)


class Workers:
    """Worker processes of one run, started when they are first asked for.

    Use them in a `with` block, or `close` them.

    Args:
        config: of the run.
        count: of processes, a core each.

    Raises:
        UserError: the count is below 1.
    """

    def __init__(self, config: RunConfig, count: int) -> None:
        if count < 1:
            raise UserError(f"expected 1 worker or more, found {count}")
        self.config = config
        self.count = count
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; they are started again when they are asked for."""
        workers = self._workers
        self._workers = []
        for worker in workers:
            worker.end()

    def ready(self, alike: Mapping[str, str]) -> Sequence[Worker]:
        """All of them, those that were lost replaced.

        Args:
            alike: `parts_digest` of the run that they are to be forks of.

        Raises:
            UserError: they can't be started, or build another run.
        """
        self._workers = [worker for worker in self._workers if worker.alive]
        try:
            while len(self._workers) < self.count:
                self._workers.append(Worker(self.config))
            for worker in self._workers:
                worker.check(alike)
        except (
            Lost,
            OSError,
            AssertionError,
        ) as error:  # a daemon's processes may not have processes
            self.close()
            raise UserError(f"worker processes can't be started ({error})") from None
        except BaseException:
            self.close()
            raise
        return tuple(self._workers)

    def ask(
        self, command: Command, parcels: Mapping[Worker, Mapping[int, Any]]
    ) -> dict[int, Answer | Lost]:
        """Have a command done by several workers at once. Of each number, what came of it."""
        answers: dict[int, Answer | Lost] = {}
        try:
            for worker, arguments in parcels.items():
                worker.send(command, arguments)
            for worker, arguments in parcels.items():
                try:
                    answers |= worker.receive()
                except Lost as lost:
                    answers |= dict.fromkeys(arguments, lost)
        except (
            BaseException
        ):  # an interrupt: what they still have to say answers nothing that is asked later
            self.close()
            raise
        return answers


@contextmanager
def _no_script() -> Iterator[None]:
    """A process that is started in the block does not import the script that runs here, which would train all over again."""
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
