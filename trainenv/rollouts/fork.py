"""Forks of a run, made at the point that futures start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from trainenv.rollouts.in_place import fork_of
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


def fork_at(run: R, start: Start, *, forks: int = 1) -> R:
    """Return a fork of a run at a start.

    Args:
        run: Run.
        start: Start of the fork.
        forks: Number of forks that there will be at once.
    """
    fork = fork_of(run, forks=forks)
    fork.restore(start.state)
    fork.ledger = start.ledger
    for _ in range(start.draw):
        fork.apply(Intervention(data_reorder=True))
    return fork
