"""Forks in worker processes, side by side: to steer and to train as if they were here, and to the same bits.

A fork whose worker is lost is trained again here, from what it was told so far. What the worker had
answered for is charged already and is not charged again, so that a decision, and what it has cost,
do not hang on a process that was killed.
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
"""Exit codes of a process that has brought itself down: what did that would bring this one down too."""
_CHANGES = ("apply", "scale", "advance")  # commands that the future depends on

_kept: WeakKeyDictionary[TrainingRun, Workers | None] = WeakKeyDictionary()
"""The workers of each run, from its first verification on; None where it can't have any."""


def remote_group(run: TrainingRun, starts: Sequence[Start], count: int) -> RemoteGroup | None:
    """Forks of a run in worker processes, which are kept for the run until it is collected; None where it can't have any.

    Args:
        run: one that `TrainingRun.from_config` makes of its configuration alone.
        starts: what each fork starts from.
        count: of processes.
    """
    workers = _kept.get(run)
    if run in _kept and workers is None:  # and it was said why
        return None
    try:
        workers = (
            workers
            if workers and (workers.config, workers.count) == (run.config, count)
            else _made(run, count)
        )
        return RemoteGroup(run, workers, starts)
    except UserError as error:
        _kept[run] = None
        warnings.warn(f"branches are trained in turn: {error}", stacklevel=2)
        return None


def dismiss(run: TrainingRun) -> None:
    """End the worker processes of a run; its next verification starts others."""
    if workers := _kept.pop(run, None):
        workers.close()


def _made(run: TrainingRun, count: int) -> Workers:
    if not isinstance(run.config, RunConfig):
        raise UserError(
            "worker processes build a run from its RunConfig, found a run of your own parts; take workers: 0"
        )
    dismiss(run)
    workers = _kept[run] = Workers(run.config, count)
    finalize(run, workers.close)  # at the end of the process too
    return workers


class RemoteRun:
    """A fork in a worker process, as it is steered from here."""

    def __init__(self, together: RemoteGroup, number: int) -> None:
        self._together = together
        self._number = number

    def apply(self, intervention: Intervention) -> None:
        """See `TrainingRun.apply`."""
        self._together.steer("apply", self._number, intervention)

    @property
    def lr_scale(self) -> float:
        """In force now."""
        return self._together.scales[self._number]

    @lr_scale.setter
    def lr_scale(self, scale: float) -> None:
        self._together.steer("scale", self._number, scale)


class RemoteGroup:
    """Forks in worker processes: a `trainenv.types.RunGroup`.

    Args:
        run: what they are forks of. It is forked here for those whose worker is lost.
        workers: they hold the forks by turns.
        starts: what each starts from, and the ledger that it is charged to.

    Attributes:
        runs: the forks, to be steered.
        failed: why a fork went no further, by number.
        scales: factor on the learning rate of each.

    Raises:
        UserError: the workers can't be started, or build another run.
    """

    def __init__(self, run: TrainingRun, workers: Workers, starts: Sequence[Start]) -> None:
        present = workers.ready(parts_digest(run))
        self._run = run
        self._workers = workers
        self._starts = tuple(starts)
        self._where: dict[int, Worker] = {
            number: present[number % len(present)] for number in range(len(starts))
        }
        self._told: list[list[tuple[Command, Any]]] = [[] for _ in starts]
        self._here: dict[int, TrainingRun] = {}  # those whose worker was lost
        self.failed: dict[int, str] = {}
        self.scales = [1.0] * len(starts)
        self.runs = tuple(RemoteRun(self, number) for number in range(len(starts)))
        self._mourned: set[Lost] = set()
        parcels = {
            id(start.state): packed(start.state) for start in starts
        }  # most start from the same
        self._do(
            "start",
            {
                number: (parcels[id(one.state)], one.draw, one.ledger)
                for number, one in enumerate(starts)
            },
        )

    def advance(self, steps: int, among: Sequence[int]) -> list[list[Telemetry]]:
        """See `RunGroup`; no steps of one that fails."""
        answers = self._do("advance", dict.fromkeys(among, steps))
        return [[] if number in self.failed else answers[number].value for number in among]

    def evaluate(self, among: Sequence[int]) -> list[float]:
        """See `RunGroup`; NaN for one that fails."""
        answers = self._do("evaluate", dict.fromkeys(among))
        return [math.nan if number in self.failed else answers[number].value for number in among]

    def snapshot(self, number: int) -> Snapshot:
        """See `RunGroup`."""
        answers = self._do("snapshot", {number: None})
        if number in self.failed:
            raise RuntimeError(self.failed[number])
        found = answers[number].value
        assert isinstance(found, Snapshot | WireSnapshot)
        return unpacked(found) if isinstance(found, WireSnapshot) else found

    def steer(self, command: Command, number: int, argument: Any) -> None:
        """Change what is in force for one.

        Raises:
            UserError: it is refused; the fork is as it was.
        """
        answer = self._do(command, {number: argument}).get(number)
        if answer is not None and answer.refused:
            raise UserError(answer.error)

    def _do(self, command: Command, arguments: Mapping[int, Any]) -> dict[int, Answer]:
        """Have a command done for each number that has not failed; the workers do it at the same time."""
        alive = {
            number: argument for number, argument in arguments.items() if number not in self.failed
        }
        parcels: dict[Worker, dict[int, Any]] = {}
        for number in alive:
            if number not in self._here:
                parcels.setdefault(self._where[number], {})[number] = alive[number]
        found = self._workers.ask(command, parcels)
        answers = dict[int, Answer]()
        for number, argument in alive.items():
            answer = found.get(number)
            if answer is None or isinstance(answer, Lost):
                answer = self._done_here(number, command, argument, answer)
            answers[number] = answer
            self._starts[number].ledger.load(answer.spent)
            self.scales[number] = answer.lr_scale
            if command in _CHANGES:
                self._told[number].append((command, argument))
            if answer.error and not answer.refused:
                self.failed[number] = answer.error
        return answers

    def _done_here(self, number: int, command: Command, argument: Any, lost: Lost | None) -> Answer:
        """Do a command for a fork whose worker is lost, or was before."""
        ledger = self._starts[number].ledger
        if lost is not None:
            why = str(lost)
            if lost.exitcode not in _FAULTS:
                self._mourn(lost)
                try:
                    self._bring_here(number)
                except Exception as error:  # whatever a model may raise
                    why += f"; then, in turn: {describe_error(error)}"
            if number not in self._here:
                return Answer(error=why, lr_scale=self.scales[number], spent=ledger.as_dict())
        fork = self._here[number]
        if command == "start":
            return Answer(lr_scale=fork.lr_scale, spent=ledger.as_dict())
        return answered(fork, command, argument)

    def _mourn(self, lost: Lost) -> None:
        if lost not in self._mourned:
            self._mourned.add(lost)
            warnings.warn(
                f"{lost}: what it trained is trained in turn, and the next verification starts another",
                stacklevel=2,
            )

    def _bring_here(self, number: int) -> None:
        """Train a fork here to where it was when its worker was lost."""
        start = self._starts[number]
        fork = fork_at(self._run, replace(start, ledger=Ledger()))
        for command, argument in self._told[number]:
            answer = answered(fork, command, argument)
            if answer.error and not answer.refused:  # what was refused then is refused now
                raise RuntimeError(answer.error)
        fork.ledger = start.ledger
        self._here[number] = fork
