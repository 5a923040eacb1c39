"""Checkpoints of a run that several processes train: a file for each of them.

Process 0 saves `cp_STEP.ptz` and lists it, as a single process does. The others save a file of the
same name and format in `rank-N/`, before process 0 does, and its state holds their digests. So a
checkpoint counts from the moment that process 0 lists it, with all of its parts. If a process dies
in a save, the list is as it was before, and so are the parts of all that it names.

Where every process holds the whole model, the parts hold the random numbers of their process; the
rest is that of process 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainenv.checkpoints import file, manifest
from trainenv.checkpoints.part_files import PROCESSES, part_path, problem
from trainenv.checkpoints.store import CheckpointStore
from trainenv.distributed.controlled_run import ControlledRun
from trainenv.run import TrainingRun
from trainenv.training import parameter_names, snapshots
from trainenv.types import TENSOR, Run, Snapshot, Tier, UserError


class SharedStore(CheckpointStore):
    """Checkpoints of a run that several processes train, in process 0. See `CheckpointStore`.

    Args:
        folder: Folder of the checkpoints, which all processes can reach.
        run: Run of all processes.
        settings: Further arguments of `CheckpointStore`.
    """

    def __init__(self, folder: Path, *, run: ControlledRun, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self._run = run

    def save(self, snapshot: Snapshot, *, moments: Tier | None = None, wait: bool = False) -> None:
        """See `CheckpointStore`. The other processes have saved their parts when it returns."""
        self.wait()
        self._open()
        name = self._writer.name_for(snapshot.step)
        listed = tuple(entry.file for entry in self._listed())
        found = self._run.everywhere(
            save_part, snapshot, str(self.folder), name, moments or self.moments, listed
        )
        for rank, (_, reason) in enumerate(found):
            if reason:
                sentence = (
                    f"process {rank} can't save its part of {self.folder / name}: {reason}; the "
                    "checkpoints before it are intact"
                )
                if self.on_error == "raise":
                    raise UserError(sentence)
                warnings.warn(sentence, stacklevel=2)
                return
        parts = {
            "size": len(found),
            "file": name,
            "digests": [digest for digest, _ in found],
            "sharded": not self._run.processes.same_state,
            "parameters": parameter_names.layout(self._run.model, self._run.optimizer),
        }
        whole = replace(snapshot, state={**snapshot.state, PROCESSES: parts})
        super().save(whole, moments=moments, wait=wait)

    def load(self, step: int | None = None, *, exact: bool = False) -> Snapshot:
        """See `CheckpointStore`. The other processes load their parts."""
        return with_parts(self._run, self.folder, super().load(step, exact=exact))


def store_of(run: Run) -> Any:
    """Return the class of checkpoint stores that fits a run, as a function of its arguments."""
    if not isinstance(run, ControlledRun):
        return CheckpointStore
    return lambda folder, **settings: SharedStore(folder, run=run, **settings)


def with_parts(run: Run, folder: Path, snapshot: Snapshot) -> Snapshot:
    """Return a loaded snapshot once all processes have loaded their parts of it.

    Args:
        run: Run that is to be restored.
        folder: Folder of the checkpoints.
        snapshot: Snapshot that was loaded from it.

    Raises:
        UserError: It was saved by another number of processes, or a part is missing or damaged.
    """
    parts = snapshot.state.get(PROCESSES)
    saved = 1 if parts is None else int(parts["size"])
    now = 1
    if isinstance(run, ControlledRun):
        now = run.processes.size
    if saved != now:
        raise UserError(
            f"the checkpoint of step {snapshot.step} was saved by {saved} process(es), "
            f"found {now}; start {saved}, or begin a new run with the --weights that trainenv "
            "checkpoint export writes"
        )
    if parts is None or not isinstance(run, ControlledRun):
        return snapshot
    for rank, reason in enumerate(run.everywhere(problem_of_part, str(folder), dict(parts))):
        if reason:
            raise UserError(
                f"the part of process {rank} of the checkpoint of step {snapshot.step} can't be "
                f"used: {reason}; delete {folder / parts['file']} to resume from the one before it"
            )
    loaded: Snapshot = run.everywhere(load_part, str(folder), dict(parts), keep=True)[0]
    return loaded


# ── calls of every process ────────────────────────────────────────────────────────────────────────


def save_part(
    run: TrainingRun,
    snapshot: Snapshot,
    folder: str,
    name: str,
    tier: Tier,
    listed: tuple[str, ...],
) -> tuple[str, str]:
    """Save the part of this process; process 0 saves its own later.

    Args:
        run: Run of this process.
        snapshot: Snapshot of it.
        folder: Folder of the checkpoints.
        name: Name of the file.
        tier: Format of the optimizer's moments.
        listed: Names of the checkpoints that are kept; parts of others are deleted.

    Returns:
        Digest of the file, and why it could not be saved, empty if it was.
    """
    rank = run.processes.rank
    if rank == 0:
        return "", ""
    path = part_path(Path(folder), name, rank)
    own = own_part(snapshot, same=run.processes.same_state)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in manifest.names_in(path.parent):
            if manifest.is_ours(other) and other not in listed:
                with suppress(OSError):
                    (path.parent / other).unlink()
        try:
            return file.write(own, path, tier=tier).digest, ""
        except UserError:  # moments that can't be rounded
            return file.write(own, path, tier="exact").digest, ""
    except (OSError, UserError) as error:
        return "", str(error)


def problem_of_part(run: TrainingRun, folder: str, parts: Mapping[str, Any]) -> str:
    """Return why the part of this process can't be used; empty if it can."""
    return problem(Path(folder), parts, run.processes.rank)


def load_part(run: TrainingRun, folder: str, parts: Mapping[str, Any]) -> Snapshot:
    """Return the snapshot of this process."""
    rank = run.processes.rank
    whole = Path(folder) / parts["file"]
    if rank == 0:
        return file.read(whole)
    own = file.read(part_path(Path(folder), parts["file"], rank))
    if not run.processes.same_state:
        return own
    base = file.read(whole)
    state = {**base.state, "rng": own.state["rng"]}
    return snapshots.with_state(replace(base, tensors={**base.tensors, **own.tensors}), state)


# ── whole states ──────────────────────────────────────────────────────────────────────────────────


def merged(folder: Path, snapshot: Snapshot) -> Snapshot:
    """Return a loaded snapshot with whole tensors, as a single process has them.

    Args:
        folder: Folder of the checkpoints.
        snapshot: Snapshot that was loaded from it: of a single process, or of process 0.

    Raises:
        UserError: A part is missing or damaged.
    """
    parts = snapshot.state.get(PROCESSES)
    if parts is None or not parts["sharded"]:
        return snapshot
    others = []
    for rank in range(1, parts["size"]):
        if reason := problem(folder, parts, rank):
            raise UserError(
                f"the part of process {rank} of the checkpoint of step {snapshot.step} can't be "
                f"used: {reason}; take an earlier step"
            )
        others.append(file.read(part_path(folder, parts["file"], rank)))
    sharded = _sharded_names(snapshot, parts["parameters"])
    tensors = {
        name: torch.cat([tensor, *(other.tensors[name] for other in others)])
        if name in sharded
        else tensor
        for name, tensor in snapshot.tensors.items()
    }
    return replace(snapshot, tensors=tensors)


def _sharded_names(snapshot: Snapshot, parameters: Sequence[Sequence[Any]]) -> set[str]:
    """Return the flat names of tensors of which each process has saved a part.

    They are the parameters, and all state of the optimizer that has the shape of its parameter.
    """
    found = set()
    model = snapshot.state["model"]
    entries = snapshot.state["optimizer"]["state"]
    averaged = snapshot.state.get("evaluated", {})
    for place, (name, _) in enumerate(parameters):
        if name not in model:
            continue
        own = model[name][TENSOR]
        shape = snapshot.tensors[own].shape
        found.add(own)
        found |= {averaged[name][TENSOR]} if name in averaged else set()
        found |= {
            one[TENSOR]
            for one in entries.get(str(place), {}).values()
            if isinstance(one, Mapping) and snapshot.tensors[one[TENSOR]].shape == shape
        }
    return found


def own_part(snapshot: Snapshot, *, same: bool) -> Snapshot:
    """Return what a process has to save of its snapshot.

    Args:
        snapshot: Snapshot of the process.
        same: True if all processes have the same state but for their random numbers.
    """
    if not same:
        return snapshot
    optimizer = snapshot.state["optimizer"]
    state = {
        **{key: value for key, value in snapshot.state.items() if key in _SMALL},
        "model": {},
        "optimizer": {"kind": optimizer["kind"], "state": {}, "param_groups": []},
        "objective": None,
    }
    return snapshots.with_state(snapshot, state)


_SMALL = (
    *("scaler", "rng", "order", "clip", "monitor", "horizon", "lr_scale", "weight_decay_scale"),
    *("seed", "applied", "flagged", "reset_at", "line_flops", "ledger", "numerics", "statistics"),
)
