"""Forks of a run, made at the point that futures start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from trainenv.training.ledger import Ledger
from trainenv.types import Intervention, Run, Snapshot

R = TypeVar("R", bound=Run)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start of a fork.

    Attributes:
        state: Snapshot that the fork starts from.
        draw: Number of times that the data to come are reordered; 0 for the run's own order.
        ledger: Ledger that the steps of the fork are charged to.
    """

    state: Snapshot
    draw: int
    ledger: Ledger


def fork_at(run: R, start: Start) -> R:
    """Return a fork of a run at a start."""
    fork = run.fork("verify")
    fork.restore(start.state)
    fork.ledger = start.ledger
    for _ in range(start.draw):
        fork.apply(Intervention(data_reorder=True))
    return fork
