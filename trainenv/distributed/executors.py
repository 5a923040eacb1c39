"""The engine that does independent jobs: processes of this machine, or a Ray cluster.

| `--executor` | where jobs are done |
|---|---|
| `local` | processes of this machine |
| `ray` | the cluster of RAY_ADDRESS; without it, a Ray that lives as long as this process |
| `ray://HOST:PORT` | the cluster with this address; this machine must be one of its nodes |

Both pools have the methods of `Pool`, and give the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

from trainenv.distributed.job_pool import JobPool
from trainenv.types import UserError

LOCAL = "local"
RAY = "ray"
_SCHEME = "ray://"

Job = TypeVar("Job")
Result = TypeVar("Result")
Done = TypeVar("Done", covariant=True)


class Pool(Protocol[Job, Done]):
    """Processes that share a list of jobs; used in a `with` block. `JobPool` is the reference."""

    def __enter__(self) -> Self:
        """Start."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes and drop their jobs."""

    def run(
        self,
        jobs: Sequence[Job],
        on_result: Callable[[Job, Done], None],
        on_lost: Callable[[Job, str], None],
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """See `JobPool.run`."""


def address_of(executor: str) -> str | None:
    """Return the address `HOST:PORT` in the name of an executor; None if it has none.

    Raises:
        UserError: There is no such executor.
    """
    if executor in (LOCAL, RAY):
        return None
    host, colon, port = executor.removeprefix(_SCHEME).rpartition(":")
    if not (executor.startswith(_SCHEME) and host and colon and port.isdecimal()):
        raise UserError(
            f"executor must be local, ray or ray://HOST:PORT, found {executor!r}; "
            "take the address that `ray start` printed, for example ray://10.0.0.1:6379"
        )
    return f"{host}:{port}"


def check_executor(executor: str, workers: int) -> None:
    """Check that an executor can do jobs, before anything is written; a cluster is joined.

    Args:
        executor: `local`, `ray` or `ray://HOST:PORT`.
        workers: Number of worker processes.

    Raises:
        UserError: See `job_pool`; or there are no workers for a cluster.
    """
    address_of(executor)
    if executor == LOCAL:
        return
    if workers < 1:
        raise UserError(
            f"executor {executor} needs 1 worker or more, found {workers}; set the number of "
            "workers, or take the executor local"
        )
    from trainenv.distributed.ray_cluster import connected

    connected(executor, workers=workers)


def job_pool(
    work: Callable[[Job], Result],
    *,
    executor: str = LOCAL,
    workers: int,
    tries: int = 2,
    daemon: bool = False,
) -> Pool[Job, Result]:
    """Return a pool that does jobs on an executor.

    Args:
        work: See `JobPool`. With Ray, all nodes must be able to import it.
        executor: `local`, `ray` or `ray://HOST:PORT`.
        workers: Number of jobs that are done at the same time, one core each, at least 1.
        tries: Number of processes that a job may cost.
        daemon: See `JobPool`; Ray has no use for it.

    Raises:
        UserError: There is no such executor; or Ray is not installed, or does not answer.
    """
    address_of(executor)
    if executor == LOCAL:
        return JobPool(work, workers=workers, tries=tries, daemon=daemon)
    from trainenv.distributed.ray_job_pool import RayJobPool

    return RayJobPool(work, executor=executor, workers=workers, tries=tries)
