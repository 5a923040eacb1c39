"""Forks in place: they take turns in the tensors of their run, where copies are impossible.

Between two calls the tensors hold the state of the run. During a call of a fork they hold the
fork's own, and what they held before lies in host memory. So any number of forks needs the memory
of one model on the device, and models that `copy.deepcopy` refuses can be forked. Each call copies
the state four times.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import nn

from trainenv.run import TrainingRun
from trainenv.tools.rng import exclusive
from trainenv.training import optimizers, snapshots
from trainenv.training.compatibility import check_alike, check_exact, check_snapshot
from trainenv.types import Emphasis, Purpose, Run, Snapshot, Telemetry, UserError

R = TypeVar("R", bound=Run)


class InPlaceFork(TrainingRun):
    """Fork of a run that trains in the run's own tensors; made by `of`.

    State that is neither a parameter nor a buffer nor in a state dict, such as a plain attribute
    that `forward` writes, is shared with the run.
    """

    in_place: ClassVar[bool] = True
    _host: TrainingRun
    _own: Snapshot  # state of the trained parts, while the host's is in the tensors
    _holds: bool

    @classmethod
    @exclusive()
    @torch.inference_mode(False)
    def of(cls, run: TrainingRun, purpose: Purpose = "verify") -> Self:
        """Return a fork of a run, or of a fork of it; see `check_branchable`."""
        run._take_in()
        fork = cls.__new__(cls)
        vars(fork).update(vars(run))
        fork._host = run
        if isinstance(run, InPlaceFork):
            fork._host = run._host
        fork._holds = False
        fork._own = snapshots.capture(run.step, run._trained_state())
        fork.objective = _objective_of(run)
        fork.purpose = purpose
        fork._recent = copy.copy(run._recent)
        fork._equip()
        fork._take_on(run.step, snapshots.expand(run._view()))
        return fork

    @contextmanager
    def _borrowing(self) -> Iterator[None]:
        """Hold the live tensors inside the block; then the host has its state back."""
        if self._holds:
            yield
            return
        host = self._host
        home = snapshots.capture(host.step, host._trained_state())
        host._load_trained(snapshots.expand(self._own))
        self._holds = True
        try:
            yield
        finally:
            try:
                self._own = snapshots.capture(self.step, self._trained_state(), self._own)
            finally:
                self._holds = False
                host._load_trained(snapshots.expand(home))

    def _trained_state(self) -> dict[str, Any]:
        if self._holds:
            return super()._trained_state()
        return snapshots.expand(self._own)

    # ── calls that need the tensors ───────────────────────────────────────────────────────────────

    def advance(self, steps: int) -> list[Telemetry]:
        """See `TrainingRun`."""
        with self._borrowing():
            return super().advance(steps)

    def diagnosis(self, step: int) -> dict[str, Any]:
        """See `TrainingRun`."""
        with self._borrowing():
            return super().diagnosis(step)

    @property
    def diverged(self) -> bool:
        """See `TrainingRun`."""
        if not self._monitor.statistics.non_finite:
            return False
        with self._borrowing():
            return super().diverged

    def _loss_on(self, micros: Sequence[Any], name: str) -> float:
        with self._borrowing():
            return super()._loss_on(micros, name)

    def _reset_momentum(self) -> None:
        with self._borrowing():
            super()._reset_momentum()

    def _adjust_objective(self, emphasis: Emphasis) -> None:
        with self._borrowing():
            super()._adjust_objective(emphasis)

    # ── the state as a value ──────────────────────────────────────────────────────────────────────

    def snapshot(self, extra: Mapping[str, Any] | None = None) -> Snapshot:
        """See `TrainingRun`."""
        if not optimizers.has_modes(self.optimizer):
            return super().snapshot(extra)
        with self._borrowing():  # to measure the weights in evaluation
            return super().snapshot(extra)

    @torch.inference_mode(False)
    def restore(self, snapshot: Snapshot, *, exact: bool = False) -> None:
        """See `TrainingRun`. The tensors are written when they are needed."""
        if self._holds:
            super().restore(snapshot, exact=exact)
            return
        check_snapshot(snapshot)
        state = snapshots.expand(snapshot)
        check_alike(self.model, self.optimizer, self.config.seed, state)
        if exact:
            check_exact(snapshot, self.numerics())
        self._take_on(snapshot.step, state)
        self._own = snapshot
        self._recent.add(snapshot)

    def fork(self, purpose: Purpose = "verify") -> Self:
        """See `TrainingRun`."""
        return type(self).of(self, purpose)

    def check_forkable(self) -> None:
        """See `TrainingRun`: it always can be, in place."""


def fork_of(run: R, *, forks: int = 1) -> R:
    """Return a fork of a run: a copy, or in place where there can be none.

    Args:
        run: Run.
        forks: Number of forks that there will be at once.

    Raises:
        UserError: The run can be forked in neither way; the error names the part.
    """
    if not isinstance(run, TrainingRun) or run.folded:
        return run.fork("verify")
    if has_no_room(run, forks):
        return InPlaceFork.of(run)  # type: ignore[return-value]
    try:
        return run.fork("verify")
    except UserError:
        check_branchable(run)
        return InPlaceFork.of(run)  # type: ignore[return-value]


def has_no_room(run: Run, forks: int) -> bool:
    """Tell if a GPU has no room for so many copies of a run. A CPU keeps either in its memory."""
    if not isinstance(run, TrainingRun) or run.device.type != "cuda":
        return False
    return forks * run.state_bytes > _free(run.device)


def check_branchable(run: Run) -> None:
    """Check that a run can be forked, by a copy or in place; changes nothing.

    Raises:
        UserError: Names the part that can be neither copied nor saved, and the remedy.
    """
    try:
        run.check_forkable()
    except UserError as error:
        if not isinstance(run, TrainingRun) or not _can_restore_objective(run):
            raise error


def reason_in_place(run: Run) -> str:
    """Return a sentence that says why forks of a run are made in place; empty if they are not."""
    place = "branches take turns in the run's own tensors"
    if has_no_room(run, 1 + run.config.branching.top_k):
        return f"{place}, as the device has no room for copies"
    try:
        run.check_forkable()
    except UserError as error:
        reason, _, _ = str(error).removeprefix("the run cannot be forked: ").partition(" (")
        return f"{place}, as {reason}"
    return ""


def _free(device: torch.device) -> int:
    """Return the bytes that are free on a GPU, those that torch keeps included."""
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + kept)


def _objective_of(run: TrainingRun) -> Any:
    """Return the objective of a fork in place: a copy if its state cannot be restored."""
    objective = run.objective
    if isinstance(objective, nn.Module | FunctionType) or hasattr(objective, "state_dict"):
        return objective
    shared = [run.model, run.optimizer, *run.model.modules(), *run.model.parameters()]
    return copy.deepcopy(objective, {id(one): one for one in shared})


def _can_restore_objective(run: TrainingRun) -> bool:
    try:
        _objective_of(run)
    except Exception:  # whatever a part of it raises that cannot be copied
        return False
    return True
