"""The pool of worker processes that hold forks of a run, as seen from the process of the run.

Workers are processes of this machine, or of a Ray cluster; both are sent the same messages.
`trainenv.rollouts.remote` places forks in them.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from trainenv.distributed.executors import LOCAL
from trainenv.distributed.ray_cluster import cores
from trainenv.distributed.ray_peer import RayPeer, Shared
from trainenv.rollouts.worker import Answer, Command, ForkServer, WireSnapshot, serve
from trainenv.types import UserError

if TYPE_CHECKING:
    from typing import Self

    from trainenv.config.schema import RunConfig

_PATIENCE = 5.0  # seconds that a process has to end


class Lost(Exception):
    """A worker process has ended.

    Args:
        exitcode: Exit code of the process; −N if signal N ended it, None if it is not known.
        reason: Reason in words, for an exit code that is not known.
    """

    def __init__(self, exitcode: int | None, reason: str = "") -> None:
        if exitcode is None:
            super().__init__(reason)
        else:
            super().__init__(f"the worker ended with exit code {str(exitcode).replace('-', '−')}")
        self.exitcode = exitcode


class Peer(Protocol):
    """A process that answers messages in turn."""

    @property
    def pid(self) -> int | None:
        """Process id."""

    @property
    def exitcode(self) -> int | None:
        """Exit code after the end; None if it is not known."""

    def alive(self) -> bool:
        """Find out if the process has not ended."""

    def send(self, message: Any) -> None:
        """Send a message; an end shows in `receive`."""

    def receive(self) -> Any:
        """Return the next answer.

        Raises:
            EOFError: The process has ended; in words if its exit code is not known.
        """

    def end(self) -> None:
        """End the process, even while it is busy."""


class ProcessPeer:
    """A process of this machine: a `Peer`.

    Args:
        config: Configuration of the run that the process builds.
    """

    def __init__(self, config: RunConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=serve, args=(theirs, config), daemon=True
        )
        with _no_script():
            self._process.start()
        theirs.close()  # the connection then ends with the process

    @property
    def pid(self) -> int | None:
        """See `Peer`."""
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        """See `Peer`."""
        return self._process.exitcode

    def alive(self) -> bool:
        """See `Peer`."""
        return self._process.is_alive()

    def send(self, message: Any) -> None:
        """See `Peer`."""
        with suppress(OSError):
            self._connection.send(message)

    def receive(self) -> Any:
        """See `Peer`."""
        try:
            return self._connection.recv()
        except OSError:
            raise EOFError("the connection ended") from None

    def end(self) -> None:
        """See `Peer`."""
        self._connection.close()
        self._process.terminate()
        self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()


class Worker:
    """One worker process.

    It is sent one command at a time, and answers it for each fork that the command is for.

    Args:
        config: Configuration of the run that the process builds.
        executor: Place of the process, see `trainenv.distributed.executors`.
        count: Number of workers that are wanted.

    Attributes:
        lost: Error to raise once the process has ended; None before.
    """

    def __init__(self, config: RunConfig, executor: str = LOCAL, count: int = 1) -> None:
        self._peer: Peer
        if executor == LOCAL:
            self._peer = ProcessPeer(config)
        else:
            self._peer = RayPeer(ForkServer, config, executor=executor, workers=count)
        self._peer.send(None)
        self.lost: Lost | None = None
        self._digest: dict[str, str] = {}

    @property
    def alive(self) -> bool:
        """True until the process ends."""
        return self.lost is None and self._peer.alive()

    @property
    def pid(self) -> int | None:
        """Process id, on the machine of the worker."""
        return self._peer.pid

    def check(self, digest: Mapping[str, str]) -> None:
        """Wait until the process has built the run, and compare its parts.

        Args:
            digest: `parts_digest` of the run that the worker is to hold forks of.

        Raises:
            Lost: The process has ended.
            UserError: The process can't build the run, or builds another one.
        """
        self._digest = self._digest or self.receive()
        if "error" in self._digest:
            raise UserError(f"worker processes can't build the run ({self._digest['error']})")
        if odd := [name for name in digest if self._digest.get(name) != digest[name]]:
            raise UserError(
                f"worker processes build a run with another {', '.join(odd)}; "
                "state it in the configuration"
            )

    def send(self, command: Command, arguments: Mapping[int, Any]) -> None:
        """Send a command for some forks; `receive` its answers before the next command.

        Args:
            command: Command to carry out.
            arguments: Argument of the command by number of the fork.
        """
        if self.lost is None:
            self._peer.send((command, dict(arguments)))

    def receive(self) -> Any:
        """Return the answers to the last command by number of the fork.

        Raises:
            Lost: The process has ended.
        """
        if self.lost is None:
            try:
                return self._peer.receive()
            except EOFError as error:
                self._peer.end()
                self.lost = Lost(self._peer.exitcode, str(error))
        raise self.lost

    def end(self) -> None:
        """End the process, even while it is busy."""
        self._peer.end()


class Workers:
    """The worker processes of one run, started on first use.

    Use them in a `with` block, or `close` them.

    Args:
        config: Configuration of the run.
        count: Number of processes, one core each.
        executor: Place of the processes, see `trainenv.distributed.executors`.

    Raises:
        UserError: The count is below 1.
    """

    def __init__(self, config: RunConfig, count: int, executor: str = LOCAL) -> None:
        if count < 1:
            raise UserError(f"expected 1 worker or more, found {count}")
        self.config = config
        self.count = count
        self.executor = executor
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. The next use starts new ones."""
        workers = self._workers
        self._workers = []
        for worker in workers:
            worker.end()

    def ready(self, digest: Mapping[str, str]) -> Sequence[Worker]:
        """Return all workers, with new ones in place of those that were lost.

        Args:
            digest: `parts_digest` of the run that the workers are to hold forks of.

        Raises:
            UserError: The processes can't be started, or build another run.
        """
        self._workers = [worker for worker in self._workers if worker.alive]
        try:
            count = self.count
            if self.executor != LOCAL:  # a worker without a core of its own would wait for one
                count = max(1, min(count, cores(self.executor, workers=count)))
            while len(self._workers) < count:
                self._workers.append(Worker(self.config, self.executor, self.count))
            for worker in self._workers:
                worker.check(digest)
        except (Lost, OSError, AssertionError) as error:
            # Among them: a process that is a daemon may not have processes of its own.
            self.close()
            raise UserError(f"worker processes can't be started ({error})") from None
        except BaseException:
            self.close()
            raise
        return tuple(self._workers)

    def shared(self, wire: WireSnapshot) -> WireSnapshot | Shared:
        """Return a snapshot as it is sent to many forks: on a cluster, one copy for each node."""
        if self.executor == LOCAL:
            return wire
        return Shared(wire, executor=self.executor, workers=self.count)

    def ask(
        self, command: Command, arguments: Mapping[Worker, Mapping[int, Any]]
    ) -> dict[int, Answer | Lost]:
        """Have several workers carry out a command at the same time, and return all answers.

        Args:
            command: Command to carry out.
            arguments: Argument of the command by worker and number of the fork.

        Returns:
            Answer by number of the fork; `Lost` if its worker has ended.
        """
        answers: dict[int, Answer | Lost] = {}
        try:
            for worker, own in arguments.items():
                worker.send(command, own)
            for worker, own in arguments.items():
                try:
                    answers |= worker.receive()
                except Lost as lost:
                    answers |= dict.fromkeys(own, lost)
        except BaseException:
            # After an interrupt, answers that are still to come would be taken for later ones.
            self.close()
            raise
        return answers


@contextmanager
def _no_script() -> Iterator[None]:
    """Keep processes that are started in the block from importing the running script.

    A training script without a `__main__` guard would otherwise train in each worker too.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
