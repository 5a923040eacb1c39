"""Jobs on a Ray cluster, one core each: a pool with the methods of `JobPool`.

Work is sent to the object store once, and a job with each task. No more tasks are submitted than
run at the same time, so that the driver never holds more than that many results. A job whose
process dies is tried again as in `JobPool`. A lost node does not count as a try, but a job that
loses ten nodes is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from trainenv.distributed.job_pool import one_thread
from trainenv.distributed.ray_cluster import connected

_ASK_STOP = 0.3  # seconds between two calls of `stop`
_PATIENCE = 10.0  # seconds that a job has to clean up
_MOST_LOST_NODES = 10  # for one job: the fault may be in it after all

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(kw_only=True)
class _Assignment(Generic[Job]):
    """A job, and what died while it was done.

    Attributes:
        job: Job to do.
        deaths: Number of processes.
        nodes: Number of nodes.
    """

    job: Job
    deaths: int = 0
    nodes: int = 0


class RayJobPool(Generic[Job, Result]):
    """Tasks of a Ray cluster that share a list of jobs.

    Use it in a `with` block: at its end, jobs that are being done are dropped.

    Args:
        work: See `JobPool`; all nodes must be able to import it.
        executor: `ray` or `ray://HOST:PORT`.
        workers: Number of jobs that are done at the same time, at least 1; fewer if the cluster
            has fewer free cores.
        tries: Number of processes that a job may cost, at least 1.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(
        self, work: Callable[[Job], Result], *, executor: str, workers: int, tries: int = 2
    ) -> None:
        self._ray: Any = connected(executor, workers=workers)
        self._count = workers
        self._tries = tries
        self._work: Any = self._ray.put(work)
        # Spread, so that a lost node costs few jobs. Ray would also try them again, uncounted.
        self._task: Any = self._ray.remote(num_cpus=1, max_retries=0)(_done).options(
            scheduling_strategy="SPREAD"
        )
        self._running: dict[Any, _Assignment[Job]] = {}  # by reference to the result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        running = list(self._running)
        self._running.clear()
        self._work = None  # the object store drops it once the last task has ended
        if not running or not self._ray.is_initialized():
            return
        for reference in running:
            self._ray.cancel(reference, force=False)  # raises KeyboardInterrupt in the job
        _, busy = self._ray.wait(running, num_returns=len(running), timeout=_PATIENCE)
        for reference in busy:
            self._ray.cancel(reference, force=True)

    def run(
        self,
        jobs: Sequence[Job],
        on_result: Callable[[Job, Result], None],
        on_lost: Callable[[Job, str], None],
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Do all jobs; see `JobPool.run`."""
        waiting = deque(_Assignment(job=job) for job in jobs)
        while waiting or self._running:
            if stop():
                return True
            while waiting and len(self._running) < self._count:
                assignment = waiting.popleft()
                self._running[self._task.remote(self._work, assignment.job)] = assignment
            ready, _ = self._ray.wait(list(self._running), timeout=_ASK_STOP)
            for reference in ready:
                self._receive(reference, waiting, on_result, on_lost)
        return False

    def _receive(
        self,
        reference: Any,
        waiting: deque[_Assignment[Job]],
        on_result: Callable[[Job, Result], None],
        on_lost: Callable[[Job, str], None],
    ) -> None:
        """Take the result of a task; if it was lost, put its job back or report it as lost."""
        errors = self._ray.exceptions
        assignment = self._running.pop(reference)
        try:
            result = self._ray.get(reference)
        except (errors.NodeDiedError, errors.ObjectLostError):
            assignment.nodes += 1
            if assignment.nodes < _MOST_LOST_NODES:
                waiting.appendleft(assignment)
            else:
                on_lost(assignment.job, f"its nodes died, {assignment.nodes} times")
            return
        except errors.RayError as error:  # an exception of the work too, as in `JobPool`
            assignment.deaths += 1
            if assignment.deaths < self._tries:
                waiting.appendleft(assignment)
                return
            on_lost(assignment.job, _reason(error, assignment.deaths))
            return
        on_result(assignment.job, result)


def _reason(error: Exception, times: int) -> str:
    """Describe the loss of a job in one line."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        reason = f"the process ended: {type(cause).__name__}: {cause}"
    else:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        reason = f"the process ended: {first}"
    if times > 1:
        reason += f", {times} times"
    return reason


def _done(work: Callable[[Any], object], job: Any) -> object:
    """Do a job in a process of the cluster, on one thread."""
    one_thread()
    return work(job)
