"""Runs that take turns in one set of live weights, optimizer and objective.

A model that is spread over processes can't be copied. A fork of it is a run of its own, but the
weights in use are those of one run at a time; the others are parked as snapshots in host memory.
So any number of branches needs the device memory of one model.
"""

from __future__ import annotations

import weakref
from typing import Protocol

from trainenv.types import Snapshot


class TakesTurns(Protocol):
    """A run that can leave its live parts to another one, and take them back."""

    def park(self) -> Snapshot:
        """Return the state of the live parts."""
        ...

    def unpark(self, snapshot: Snapshot) -> None:
        """Put a state into the live parts."""
        ...


class Turns:
    """The live parts, and the run whose state they hold.

    Args:
        first: Run whose state they hold now.
    """

    def __init__(self, first: TakesTurns) -> None:
        self._current = weakref.ref(first)
        self._parked: weakref.WeakKeyDictionary[TakesTurns, Snapshot] = weakref.WeakKeyDictionary()

    def add(self, run: TakesTurns, snapshot: Snapshot) -> None:
        """Add a run that is not in the live parts.

        Args:
            run: Run.
            snapshot: State of its live parts.
        """
        self._parked[run] = snapshot

    def take(self, run: TakesTurns, *, load: bool = True) -> None:
        """Put a run into the live parts, and park the one that was there.

        Args:
            run: Run.
            load: False if the caller is about to load another state.
        """
        current = self._current()
        if current is run:
            return
        if current is not None:  # else nothing needs its state any more
            self._parked[current] = current.park()
        snapshot = self._parked.pop(run)
        self._current = weakref.ref(run)
        if load:
            run.unpark(snapshot)
