"""A worker process at work: it builds the run of a configuration once, and then does what it is told for forks of it.

Tensors go over as bytes. Left to the connection they would go as handles of memory, which the death
of a worker takes away.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch

from trainenv.config.schema import RunConfig
from trainenv.rollouts.fork import Start, fork_at
from trainenv.rollouts.parts_digest import parts_digest
from trainenv.run import TrainingRun
from trainenv.tools.error_text import describe_error
from trainenv.types import Snapshot, Tier, UserError

Command = Literal["start", "apply", "scale", "advance", "evaluate", "snapshot"]


@dataclass(frozen=True, kw_only=True)
class WireSnapshot:
    """A snapshot on its way, each tensor as its type, shape and bytes."""

    step: int
    state: Mapping[str, Any]
    tier: Tier
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...], bytes]]


def packed(snapshot: Snapshot) -> WireSnapshot:
    """To be sent."""
    tensors = {
        name: (one.dtype, tuple(one.shape), one.flatten().view(torch.uint8).numpy().tobytes())
        for name, one in snapshot.tensors.items()
    }
    return WireSnapshot(
        step=snapshot.step, state=snapshot.state, tier=snapshot.tier, tensors=tensors
    )


def unpacked(parcel: WireSnapshot) -> Snapshot:
    """As it was packed, to the bit."""
    tensors = {
        name: torch.frombuffer(bytearray(data), dtype=dtype).view(shape)
        if data
        else torch.empty(shape, dtype=dtype)
        for name, (dtype, shape, data) in parcel.tensors.items()
    }
    return Snapshot(step=parcel.step, state=parcel.state, tier=parcel.tier, tensors=tensors)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command came to, for one fork.

    Attributes:
        value: steps, a loss, or a snapshot as a parcel.
        error: in words; empty: it went well.
        refused: whether it was an intervention out of bounds, which leaves the fork as it was.
        lr_scale: in force now.
        spent: the fork's ledger, of all commands so far.
    """

    value: Any = None
    error: str = ""
    refused: bool = False
    lr_scale: float = 1.0
    spent: dict[str, float] = field(default_factory=dict)


def serve(line: Connection, config: RunConfig) -> None:
    """A worker's life: commands, until nobody is there to send any."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the first of them ends the others
    torch.set_num_threads(1)
    forks: dict[int, TrainingRun] = {}
    with suppress(OSError, EOFError):
        try:
            run = TrainingRun.from_config(config)
        except Exception as error:
            line.send({"error": describe_error(error)})
            return
        line.send(parts_digest(run))
        while True:
            command, arguments = line.recv()
            if command == "start":
                forks.clear()  # of the verification before
            line.send({n: _served(run, forks, n, command, one) for n, one in arguments.items()})


def _served(
    run: TrainingRun, forks: dict[int, TrainingRun], number: int, command: Command, argument: Any
) -> Answer:
    if command != "start":
        answer = answered(forks[number], command, argument)
        return (
            replace(answer, value=packed(answer.value))
            if isinstance(answer.value, Snapshot)
            else answer
        )
    try:
        parcel, draw, ledger = argument
        fork = forks[number] = fork_at(run, Start(state=unpacked(parcel), draw=draw, ledger=ledger))
    except Exception as error:
        return Answer(error=describe_error(error))
    return Answer(lr_scale=fork.lr_scale, spent=fork.ledger.as_dict())


def answered(fork: TrainingRun, command: Command, argument: Any) -> Answer:
    """What a command comes to."""
    value = None
    error = ""
    refused = False
    try:
        value = _carry_out(fork, command, argument)
    except Exception as raised:  # whatever a model may raise, memory that is out among it
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
