"""Rewind points: snapshots of a run that it can go back to."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from trainenv.types import Run, Snapshot


@dataclass
class RewindPoints:
    """Snapshots that the run can go back to.

    Attributes:
        snapshots: Snapshots of the run's present line of history, the newest last.
    """

    snapshots: deque[Snapshot] = field(default_factory=deque)

    @property
    def steps(self) -> list[int]:
        """Step of each snapshot."""
        return [snapshot.step for snapshot in self.snapshots]

    @property
    def newest(self) -> Snapshot | None:
        """The newest snapshot, if there is one."""
        return self.snapshots[-1] if self.snapshots else None

    def at_or_before(self, step: int) -> Snapshot | None:
        """Return the newest snapshot of at most this step, if there is one."""
        return next((one for one in reversed(self.snapshots) if one.step <= step), None)

    def remember(self, run: Run, *, most: int) -> None:
        """Add a snapshot of the run, and drop the oldest beyond `most`."""
        if self.snapshots and self.snapshots[-1].step == run.step:
            self.snapshots.pop()
        self.snapshots.append(run.snapshot())
        if len(self.snapshots) > most:
            self.snapshots.popleft()

    def forget_after(self, step: int) -> None:
        """Drop the snapshots of later steps, which the run has left."""
        self.snapshots = deque(one for one in self.snapshots if one.step <= step)
