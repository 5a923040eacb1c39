"""A process of a Ray cluster that answers messages in turn, and what several of them share.

    peer = RayPeer(make, config, executor="ray", workers=1)
    peer.send(Shared(value, executor="ray", workers=1))
    answer = peer.receive()

`make(config)` is called in the process and returns the function from a message to its answer.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

from trainenv.distributed.job_pool import one_thread
from trainenv.distributed.ray_cluster import connected

_START = 120.0  # seconds until a process has started, imports included


class Serving:
    """The actor: it holds the function that answers.

    Args:
        make: Function that returns the function from a message to its answer.
        argument: Argument of `make`.
    """

    def __init__(self, make: Callable[[Any], Callable[[Any], Any]], argument: Any) -> None:
        one_thread()
        self._answer = make(argument)

    def pid(self) -> int:
        """Return the process id, on its own node."""
        return os.getpid()

    def ask(self, message: Any) -> Any:
        """Return the answer to a message."""
        return self._answer(message)


class RayPeer:
    """One process of a cluster, on one core.

    Args:
        make: See `Serving`; all nodes must be able to import it.
        argument: Argument of `make`.
        executor: `ray` or `ray://HOST:PORT`.
        workers: Number of peers that are wanted, for a Ray that starts here.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(
        self,
        make: Callable[[Any], Callable[[Any], Any]],
        argument: Any,
        *,
        executor: str,
        workers: int,
    ) -> None:
        self._ray: Any = connected(executor, workers=workers)
        # No restart: what the process held would be lost, and the one that asks makes it again.
        made = self._ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Serving)
        self._actor: Any = made.options(scheduling_strategy="SPREAD").remote(make, argument)
        self._started: Any = self._actor.pid.remote()
        self._answers: deque[Any] = deque()  # references, oldest first
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """Process id, once it has started.

        Raises:
            EOFError: The process has ended, or did not start within two minutes.
        """
        if self._pid is None:
            self._pid = self._got(self._started, timeout=_START)
        return self._pid

    @property
    def exitcode(self) -> None:
        """None: Ray does not tell."""
        return None

    def send(self, message: Any) -> None:
        """Send a message; `receive` returns its answer."""
        self._answers.append(self._actor.ask.remote(message))

    def receive(self) -> Any:
        """Return the answer to the oldest message that has none yet.

        Raises:
            EOFError: The process has ended, or did not start within two minutes.
        """
        _ = self.pid  # a process that waits for a free core never answers
        return self._got(self._answers.popleft())

    def alive(self) -> bool:
        """Find out if the process answers; a lost node counts as an end."""
        try:
            self._got(self._actor.pid.remote(), timeout=_START)
        except EOFError:
            return False
        return True

    def end(self) -> None:
        """End the process, even while it is busy."""
        self._answers.clear()
        if self._ray.is_initialized():
            self._ray.kill(self._actor)

    def _got(self, reference: Any, *, timeout: float | None = None) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference, timeout=timeout)
        except (
            errors.RayActorError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
        ):
            raise EOFError("a worker of the cluster ended") from None
        except errors.GetTimeoutError:
            raise EOFError(
                f"a worker of the cluster did not answer in {_START:.0f} s; see if a core is free"
            ) from None


class Shared:
    """A value in the object store of a cluster, which each node fetches once.

    The store drops it once no `Shared` of it is left in any process.

    Args:
        value: Value to share.
        executor: `ray` or `ray://HOST:PORT`.
        workers: See `RayPeer`.
    """

    def __init__(self, value: Any, *, executor: str, workers: int) -> None:
        self._reference: Any = connected(executor, workers=workers).put(value)

    def get(self) -> Any:
        """Return the value. Arrays of NumPy are read-only views into the object store."""
        import ray

        return ray.get(self._reference)
