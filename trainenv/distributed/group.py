"""The process group of a run: joining it, and sentences for processes that were lost."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from trainenv.distributed.heartbeat import Heartbeat
from trainenv.types import UserError

_START = timedelta(seconds=120)  # for all processes to start
_STEP = timedelta(minutes=10)  # for one collective operation of a step
_COMMAND = timedelta(days=30)  # for process 0 to send what comes next
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Words in the errors of gloo, NCCL and sockets that mean that another process has gone.
_GONE = ("gloo", "nccl", "connection", "socket", "broken pipe", "timed out", "timeout", "tcpstore")


class LostProcess(UserError):
    """Another process of the run has ended or does not answer, so that no step can be trained."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The processes of a run.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        steps: Group in which tensors of a step are reduced.
        control: Group in which process 0 sends what comes next; it waits for any length of time.
        heartbeats: Thread that watches the other processes; empty before it has begun.
    """

    rank: int
    size: int
    steps: Any
    control: Any
    heartbeats: list[Heartbeat] = field(default_factory=list)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        summed = value.detach().clone()
        with lost_in_sentences():
            dist.all_reduce(summed, group=self.steps)
        return summed

    def first(self, value: Tensor) -> Tensor:
        """Return the tensor of process 0."""
        same = value.detach().clone()
        with lost_in_sentences():
            dist.broadcast(same, 0, group=self.steps)
        return same

    def send(self, value: Any) -> Any:
        """Return the object of process 0, in every process; waits for it for any time."""
        box = [value]
        with lost_in_sentences():
            dist.broadcast_object_list(box, 0, group=self.control, device=torch.device("cpu"))
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """Return the object of each process, in every process."""
        found: list[Any] = [None] * self.size
        with lost_in_sentences():
            dist.all_gather_object(found, value, group=self.control)
        return found

    def fingerprint(self, own: str) -> str:
        """Return the hash of the hashes of all processes."""
        return xxhash.xxh3_128_hexdigest("|".join(self.gathered(own)).encode())

    def count(self, true: bool) -> int:
        """Return the number of processes that give True, in every process."""
        flag = torch.tensor([int(true)])
        with lost_in_sentences():
            dist.all_reduce(flag, group=self.control)
        return int(flag)


_joined: list[Group] = []


def join(kind: str, device: torch.device) -> Group:
    """Return the group of the processes that a launcher has started; joined once in a process.

    Args:
        kind: Value of the key `distributed`.
        device: Device of the run.

    Raises:
        UserError: No launcher has started this process.
        LostProcess: Not all processes have started.
    """
    if _joined:
        return _joined[0]
    started = dist.is_available() and dist.is_initialized()
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing and not started:
        raise UserError(
            f"distributed {kind} needs processes that a launcher has started, found no "
            f"{missing[0]} in the environment; start it with torchrun --nproc-per-node 2 -m "
            "trainenv run …, or leave distributed out"
        )
    with lost_in_sentences():
        if not started:
            if device.type == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_START)
        group = Group(
            rank=dist.get_rank(),
            size=dist.get_world_size(),
            steps=dist.new_group(timeout=_STEP),
            control=dist.new_group(timeout=_COMMAND, backend="gloo"),
        )
        if group.size > 1:
            group.heartbeats.append(Heartbeat(group.rank, group.size, group.send))
    _joined.append(group)
    return group


def leave() -> None:
    """Leave the group, so that the process can end; every process does so at the same point."""
    if _joined:
        for heartbeat in _joined.pop().heartbeats:
            heartbeat.stop()
        dist.destroy_process_group()


def check_same(group: Group, settings: Mapping[str, Any]) -> None:
    """Check that all processes have the same settings.

    Args:
        group: Processes of the run.
        settings: Settings by dotted key, as JSON values.

    Raises:
        UserError: Names the first key that differs, in every process.
    """
    for rank, theirs in enumerate(every := group.gathered(dict(settings))):
        for key in sorted({*every[0], *theirs}):
            if every[0].get(key) != theirs.get(key):
                raise UserError(
                    "all processes of a run need the same configuration, found "
                    f"{key} {every[0].get(key)!r} in process 0 and {theirs.get(key)!r} in process "
                    f"{rank}; start all of them with the same arguments"
                )


def launched() -> int:
    """Return the number of processes that a launcher has started; 1 without one."""
    try:
        return int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 1


@contextmanager
def lost_in_sentences() -> Iterator[None]:
    """Raise `LostProcess` in place of an error that another process has caused by its end."""
    try:
        yield
    except LostProcess:
        raise
    except RuntimeError as error:
        words = str(error).lower()
        if not isinstance(error, dist.DistError) and not any(word in words for word in _GONE):
            raise
        raise LostProcess(
            f"expected all {launched()} processes of the run, found that another one has ended or "
            "does not answer; see its message, and resume from the newest checkpoint with the same "
            "number of processes and --resume"
        ) from error
