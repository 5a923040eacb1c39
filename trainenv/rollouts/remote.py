"""Forks in worker processes, with the same interface and the same bits as forks in this process.

A fork whose worker is lost is trained again in this process, by the commands that it was sent so
far. Steps that the worker had answered for are not charged again. A decision and its cost are hence
the same whether a worker was killed or not.
"""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, finalize

from trainenv.config.schema import RunConfig
from trainenv.distributed.executors import LOCAL
from trainenv.rollouts.fork import Start, fork_at
from trainenv.rollouts.parts_digest import parts_digest
from trainenv.rollouts.pool import Lost, Worker, Workers
from trainenv.rollouts.worker import Answer, Command, WireSnapshot, answered, packed, unpacked
from trainenv.tools.error_text import describe_error
from trainenv.training.ledger import Ledger
from trainenv.types import Intervention, Snapshot, Telemetry, UserError

if TYPE_CHECKING:
    from trainenv.run import TrainingRun

_FAULTS = {
    -signal.SIGSEGV,
    -signal.SIGABRT,
    -signal.SIGFPE,
    -signal.SIGILL,
    -getattr(signal, "SIGBUS", signal.SIGSEGV),
}
"""Exit codes of a crash. What crashed a worker could crash this process, so it is not run here."""
_CHANGES = ("apply", "scale", "advance")  # commands that change the state of a fork

_kept: WeakKeyDictionary[TrainingRun, Workers | None] = WeakKeyDictionary()
"""Workers of each run from its first verification on; None if the run can't have any."""


def remote_group(
    run: TrainingRun, starts: Sequence[Start], count: int, executor: str = LOCAL
) -> RemoteGroup | None:
    """Return forks of a run in worker processes; None if the run can't have any.

    The processes are kept for the next call, until the run is garbage-collected.

    Args:
        run: Run that `TrainingRun.from_config` can build from its configuration alone.
        starts: One start for each fork.
        count: Number of worker processes.
        executor: Place of the processes, see `trainenv.distributed.executors`.
    """
    workers = _kept.get(run)
    if run in _kept and workers is None:  # a warning has given the reason
        return None
    try:
        wanted = run.config, count, executor
        if workers is None or (workers.config, workers.count, workers.executor) != wanted:
            workers = _made(run, count, executor)
        return RemoteGroup(run, workers, starts)
    except UserError as error:
        _kept[run] = None
        warnings.warn(f"branches are trained in turn: {error}", stacklevel=2)
        return None


def dismiss(run: TrainingRun) -> None:
    """End the worker processes of a run. Its next verification starts new ones."""
    if workers := _kept.pop(run, None):
        workers.close()


def _made(run: TrainingRun, count: int, executor: str = LOCAL) -> Workers:
    """Return new workers for a run, which end with it."""
    if not isinstance(run.config, RunConfig):
        raise UserError(
            "worker processes build a run from its RunConfig, found a run of your own parts; "
            "take workers: 0"
        )
    dismiss(run)
    workers = _kept[run] = Workers(run.config, count, executor)
    finalize(run, workers.close)  # also at the end of this process
    return workers


class RemoteRun:
    """A fork in a worker process, steered from this one."""

    def __init__(self, together: RemoteGroup, number: int) -> None:
        self._together = together
        self._number = number

    def apply(self, intervention: Intervention) -> None:
        """See `TrainingRun.apply`."""
        self._together.steer("apply", self._number, intervention)

    @property
    def lr_scale(self) -> float:
        """Factor on the learning rate in force."""
        return self._together.scales[self._number]

    @lr_scale.setter
    def lr_scale(self, scale: float) -> None:
        self._together.steer("scale", self._number, scale)


class RemoteGroup:
    """Forks in worker processes: a `trainenv.types.RunGroup`.

    Args:
        run: Run that is forked, in this process too if a worker is lost.
        workers: Worker processes; the forks are dealt out to them in turn.
        starts: One start for each fork, with the ledger that the fork is charged to.

    Attributes:
        runs: One `RemoteRun` for each fork.
        failed: Description of the error of each fork that failed, by number.
        scales: Factor on the learning rate of each fork.

    Raises:
        UserError: The workers can't be started, or build another run.
    """

    def __init__(self, run: TrainingRun, workers: Workers, starts: Sequence[Start]) -> None:
        present = workers.ready(parts_digest(run))
        self._run = run
        self._workers = workers
        self._starts = tuple(starts)
        self._where: dict[int, Worker] = {
            number: present[number % len(present)] for number in range(len(starts))
        }
        self._sent: list[list[tuple[Command, Any]]] = [[] for _ in starts]  # commands to each fork
        self._here: dict[int, TrainingRun] = {}  # forks whose worker was lost
        self.failed: dict[int, str] = {}
        self.scales = [1.0] * len(starts)
        self.runs = tuple(RemoteRun(self, number) for number in range(len(starts)))
        self._warned: set[Lost] = set()
        states = {id(start.state): start.state for start in starts}  # many share one
        wires = {key: workers.shared(packed(state)) for key, state in states.items()}
        arguments = [(wires[id(start.state)], start.draw, start.ledger) for start in starts]
        self._do("start", dict(enumerate(arguments)))

    def advance(self, steps: int, among: Sequence[int]) -> list[list[Telemetry]]:
        """See `RunGroup`; the steps of a fork that failed are empty."""
        answers = self._do("advance", dict.fromkeys(among, steps))
        return [[] if number in self.failed else answers[number].value for number in among]

    def evaluate(self, among: Sequence[int]) -> list[float]:
        """See `RunGroup`; the loss of a fork that failed is NaN."""
        answers = self._do("evaluate", dict.fromkeys(among))
        return [math.nan if number in self.failed else answers[number].value for number in among]

    def snapshot(self, number: int) -> Snapshot:
        """See `RunGroup`."""
        answers = self._do("snapshot", {number: None})
        if number in self.failed:
            raise RuntimeError(self.failed[number])
        found = answers[number].value
        if isinstance(found, WireSnapshot):
            return unpacked(found)
        assert isinstance(found, Snapshot)
        return found

    def steer(self, command: Command, number: int, argument: Any) -> None:
        """Send a command that changes one fork.

        Args:
            command: Command to carry out.
            number: Number of the fork.
            argument: Argument of the command.

        Raises:
            UserError: The fork refuses the change, and is as it was.
        """
        answer = self._do(command, {number: argument}).get(number)
        if answer is not None and answer.refused:
            raise UserError(answer.error)

    def _do(self, command: Command, arguments: Mapping[int, Any]) -> dict[int, Answer]:
        """Carry out a command for each fork that has not failed, in all workers at once."""
        alive = {
            number: argument for number, argument in arguments.items() if number not in self.failed
        }
        remote: dict[Worker, dict[int, Any]] = {}
        for number in alive:
            if number not in self._here:
                remote.setdefault(self._where[number], {})[number] = alive[number]
        found = self._workers.ask(command, remote)
        answers = dict[int, Answer]()
        for number, argument in alive.items():
            answer = found.get(number)
            if answer is None or isinstance(answer, Lost):
                answer = self._done_here(number, command, argument, answer)
            answers[number] = answer
            self._starts[number].ledger.load(answer.spent)
            self.scales[number] = answer.lr_scale
            if command in _CHANGES:
                self._sent[number].append((command, argument))
            if answer.error and not answer.refused:
                self.failed[number] = answer.error
        return answers

    def _done_here(self, number: int, command: Command, argument: Any, lost: Lost | None) -> Answer:
        """Carry out a command here for a fork whose worker is lost now or was lost before."""
        ledger = self._starts[number].ledger
        if lost is not None:
            why = str(lost)
            if lost.exitcode not in _FAULTS:
                self._warn_lost(lost)
                try:
                    self._bring_here(number)
                except Exception as error:  # any error of a model
                    why += f"; then, in turn: {describe_error(error)}"
            if number not in self._here:
                return Answer(error=why, lr_scale=self.scales[number], spent=ledger.as_dict())
        fork = self._here[number]
        if command == "start":
            return Answer(lr_scale=fork.lr_scale, spent=ledger.as_dict())
        return answered(fork, command, argument)

    def _warn_lost(self, lost: Lost) -> None:
        """Warn once of a worker that was lost."""
        if lost not in self._warned:
            self._warned.add(lost)
            warnings.warn(
                f"{lost}: what it trained is trained in turn, "
                "and the next verification starts another",
                stacklevel=2,
            )

    def _bring_here(self, number: int) -> None:
        """Train a fork in this process up to the step at which its worker was lost."""
        start = self._starts[number]
        fork = fork_at(self._run, replace(start, ledger=Ledger()))
        for command, argument in self._sent[number]:
            answer = answered(fork, command, argument)
            if answer.error and not answer.refused:  # the worker refused the same commands
                raise RuntimeError(answer.error)
        fork.ledger = start.ledger
        self._here[number] = fork
