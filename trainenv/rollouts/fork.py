"""Forks of a run, made at the point that futures start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from trainenv.training.ledger import Ledger
from trainenv.types import Intervention, Run, Snapshot

R = TypeVar("R", bound=Run)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a fork starts from: a state, whose data to come are reordered `draw` times; its steps are charged to `ledger`."""

    state: Snapshot
    draw: int
    ledger: Ledger


def fork_at(run: R, start: Start) -> R:
    """A fork of a run, as it starts."""
    fork = run.fork("verify")
    fork.restore(start.state)
    fork.ledger = start.ledger
    for _ in range(start.draw):
        fork.apply(Intervention(data_reorder=True))
    return fork
