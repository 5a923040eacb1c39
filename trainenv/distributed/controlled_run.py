"""`ControlledRun`: a run of several processes, as whoever steers it in process 0 sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from trainenv.distributed.control import Controller, follow
from trainenv.distributed.group import LostProcess
from trainenv.tools.error_text import describe_error
from trainenv.types import Intervention, Purpose, Snapshot, Telemetry, UserError

Result = TypeVar("Result")


def together(run: Any, work: Callable[[Any], Result]) -> Result:
    """Let process 0 work with a run while the others make the same calls; return its result.

    Args:
        run: Run of this process. One of a single process, or one that is already controlled, is
            given to `work` as it is.
        work: Function that trains the run and returns a picklable object; called in process 0.

    Raises:
        UserError: An error has ended the work of process 0.
        LostProcess: Another process has ended, or has failed where this one did not.
    """
    processes = getattr(run, "processes", None)
    if processes is None or processes.size == 1 or isinstance(run, ControlledRun):
        return work(run)
    if processes.rank:
        found: Result = follow(processes.group, run)
        return found
    controller = Controller(processes.group, run)
    try:
        result = work(ControlledRun(controller, run))
    except LostProcess:
        raise
    except BaseException as error:
        controller.end(error=f"process 0 has ended: {describe_error(error)}")
        raise
    controller.end(result)
    return result


class ControlledRun:
    """A run whose calls all processes make. See `trainenv.types.Run`.

    What is only read is read from the run of this process. A snapshot holds the part of this
    process; the others keep theirs for as long as it exists.

    Args:
        controller: Sender of the calls.
        run: The run of this process.
    """

    def __init__(self, controller: Controller, run: Any) -> None:
        self._controller = controller
        self._run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    @property
    def ledger(self) -> Any:
        """Ledger of FLOPs of all processes."""
        return self._run.ledger

    @ledger.setter
    def ledger(self, ledger: Any) -> None:
        self._run.ledger = ledger

    @property
    def purpose(self) -> Purpose:
        """Purpose that the FLOPs of its steps are charged to."""
        purpose: Purpose = self._run.purpose
        return purpose

    @purpose.setter
    def purpose(self, purpose: Purpose) -> None:
        self._run.purpose = purpose

    @property
    def diverged(self) -> bool:
        """True if further training is useless."""
        return bool(self._call("diverged", None))

    # ── calls of all processes ────────────────────────────────────────────────────────────────────

    def advance(self, steps: int) -> list[Telemetry]:
        """See `Run`."""
        measured: list[Telemetry] = self._call("advance", (steps,))
        return measured

    def evaluate(self) -> float:
        """See `Run`."""
        return float(self._call("evaluate", ()))

    def evaluate_fully(self) -> float:
        """See `Run`."""
        return float(self._call("evaluate_fully", ()))

    def test_loss(self) -> float:
        """See `Run`."""
        return float(self._call("test_loss", ()))

    def diagnosis(self, step: int) -> dict[str, Any]:
        """Return what is known of an alarm at a step of the last block."""
        found: dict[str, Any] = self._call("diagnosis", (step,))
        return found

    def apply(self, intervention: Intervention) -> None:
        """See `Run`."""
        self._call("apply", (intervention,))

    def flag(self, data_indices: Iterable[int]) -> None:
        """See `Run`."""
        self._call("flag", (tuple(data_indices),))

    def rewind(self, snapshot: Snapshot) -> None:
        """See `Run`."""
        self._call("rewind", (snapshot,))

    def spend(self, steps: int) -> None:
        """See `Run`."""
        self._call("spend", (steps,))

    def end_at(self, step: int) -> None:
        """See `Run`."""
        self._call("end_at", (step,))

    def snapshot(self, extra: Mapping[str, Any] | None = None) -> Snapshot:
        """See `Run`."""
        snapshot: Snapshot = self._controller.call(self._run, "snapshot", (extra,), keep=True)
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """See `Run`.

        Raises:
            UserError: The other processes do not have their parts of the snapshot.
        """
        if not self._controller.knows(snapshot):
            raise UserError(
                "a run of several processes restores snapshots that it took or loaded itself, "
                "found another; take it with snapshot(), or load it from the run's own store"
            )
        self._call("restore", (snapshot,))

    def fork(self, purpose: Purpose = "verify") -> ControlledRun:
        """See `Run`."""
        fork = self._controller.call(self._run, "fork", (purpose,), keep=True)
        return ControlledRun(self._controller, fork)

    def fingerprint(self) -> str:
        """See `Run`."""
        return str(self._call("fingerprint", ()))

    def everywhere(
        self, function: Callable[..., Any], *arguments: Any, keep: bool = False
    ) -> list[Any]:
        """Call a function of a module with the run in all processes; return all results.

        Args:
            function: Function that gets the run, then the arguments.
            arguments: Arguments; snapshots of this run are replaced by those of each process.
            keep: True to return the snapshot that the function returns here, alone in the list, and
                to have each process keep its own.
        """
        if keep:
            return [self._controller.call(self._run, function, arguments, keep=True)]
        found: list[Any] = self._controller.call(self._run, function, arguments, gather=True)
        return found

    def _call(self, method: str, arguments: tuple[Any, ...] | None) -> Any:
        return self._controller.call(self._run, method, arguments)
