"""The worker side of worker processes: build a run once, then carry out commands for its forks.

Tensors are sent as arrays of bytes. By default a connection sends handles of shared memory, which
end with the worker. The worker is a process of this machine or an actor of a Ray cluster.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from trainenv.config.schema import RunConfig
from trainenv.distributed.ray_peer import Shared
from trainenv.rollouts.fork import Start, fork_at
from trainenv.rollouts.parts_digest import parts_digest
from trainenv.run import TrainingRun
from trainenv.tools.error_text import describe_error
from trainenv.types import Snapshot, Tier, UserError

Command = Literal["start", "apply", "scale", "advance", "evaluate", "snapshot"]


@dataclass(frozen=True, kw_only=True)
class WireSnapshot:
    """A snapshot in the form that is sent between processes.

    Attributes:
        step: Step of the run.
        state: State without the tensors.
        tier: Precision of the snapshot.
        tensors: Type, shape and bytes of each tensor.
    """

    step: int
    state: Mapping[str, Any]
    tier: Tier
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...], npt.NDArray[np.uint8]]]


def packed(snapshot: Snapshot) -> WireSnapshot:
    """Return a snapshot in the form that is sent; arrays may share its memory."""
    tensors = {
        name: (one.dtype, tuple(one.shape), one.flatten().view(torch.uint8).numpy())
        for name, one in snapshot.tensors.items()
    }
    return WireSnapshot(
        step=snapshot.step, state=snapshot.state, tier=snapshot.tier, tensors=tensors
    )


def unpacked(wire: WireSnapshot) -> Snapshot:
    """Return the snapshot that was packed, equal to the bit."""
    tensors = {}
    for name, (dtype, shape, data) in wire.tensors.items():
        if data.size:
            tensors[name] = torch.frombuffer(bytearray(data), dtype=dtype).view(shape)
        else:
            tensors[name] = torch.empty(shape, dtype=dtype)
    return Snapshot(step=wire.step, state=wire.state, tier=wire.tier, tensors=tensors)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a command for one fork.

    Attributes:
        value: Telemetry of the steps, a validation loss, or a snapshot; None for other commands.
        error: Description of the error; empty if there was none.
        refused: True if an intervention was out of bounds, which leaves the fork as it was.
        lr_scale: Factor on the learning rate after the command.
        spent: FLOPs in the ledger of the fork by purpose, over all commands so far.
    """

    value: Any = None
    error: str = ""
    refused: bool = False
    lr_scale: float = 1.0
    spent: dict[str, float] = field(default_factory=dict)


class ForkServer:
    """The forks that a worker holds, and the function that answers messages.

    Args:
        config: Configuration of the run that is forked; an error of building it is an answer.
    """

    def __init__(self, config: RunConfig) -> None:
        self._forks: dict[int, TrainingRun] = {}
        self._run: TrainingRun | None = None
        try:
            self._run = TrainingRun.from_config(config)
            self.digest = parts_digest(self._run)
        except Exception as error:
            self.digest = {"error": describe_error(error)}

    def __call__(self, message: tuple[Command, Mapping[int, Any]] | None) -> dict[Any, Any]:
        """Return answers by number of the fork; for the message None, the digest of the parts."""
        if message is None:
            return self.digest
        assert self._run is not None
        command, arguments = message
        if command == "start":
            self._forks.clear()  # those of the last verification
        answers = {}
        for number, argument in arguments.items():
            if command == "start":
                answers[number] = _start(self._run, self._forks, number, argument)
            else:
                answer = answered(self._forks[number], command, argument)
                answers[number] = _packed_answer(answer)
        return answers


def serve(connection: Connection, config: RunConfig) -> None:
    """Answer messages until the connection is closed. This is the main function of a process.

    Args:
        connection: Connection to the process of the run.
        config: Configuration of the run that is forked.
    """
    # Ctrl-C reaches all processes; the process of the run then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(OSError, EOFError):
        server = ForkServer(config)
        while "error" not in server.digest:
            connection.send(server(connection.recv()))
        connection.send(server(connection.recv()))


def _start(run: TrainingRun, forks: dict[int, TrainingRun], number: int, argument: Any) -> Answer:
    """Make the fork with a number from snapshot, draw and ledger."""
    try:
        wire, draw, ledger = argument
        if isinstance(wire, Shared):
            wire = wire.get()
        fork = fork_at(run, Start(state=unpacked(wire), draw=draw, ledger=ledger))
    except Exception as error:
        return Answer(error=describe_error(error))
    forks[number] = fork
    return Answer(lr_scale=fork.lr_scale, spent=fork.ledger.as_dict())


def _packed_answer(answer: Answer) -> Answer:
    if isinstance(answer.value, Snapshot):
        return replace(answer, value=packed(answer.value))
    return answer


def answered(fork: TrainingRun, command: Command, argument: Any) -> Answer:
    """Carry out a command for a fork and return its answer, which has any error in it."""
    value = None
    error = ""
    refused = False
    try:
        value = _carry_out(fork, command, argument)
    except Exception as raised:  # any error of a model, out of memory included
        refused = command == "apply" and isinstance(raised, UserError)
        error = describe_error(raised)
    return Answer(
        value=value,
        error=error,
        refused=refused,
        lr_scale=fork.lr_scale,
        spent=fork.ledger.as_dict(),
    )


def _carry_out(fork: TrainingRun, command: Command, argument: Any) -> Any:
    match command:
        case "advance":
            return fork.advance(argument)
        case "evaluate":
            return fork.evaluate()
        case "snapshot":
            return fork.snapshot()
        case "apply":
            fork.apply(argument)
        case "scale":
            fork.lr_scale = argument
    return None
