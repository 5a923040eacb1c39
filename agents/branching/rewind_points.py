"""Rewind points: states of a run that it, or a fork of it, can go back to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from trainenv.rollouts.in_place import fork_of
from trainenv.types import Run, Snapshot, Telemetry


@dataclass(frozen=True, kw_only=True)
class RewindPoint:
    """State that the branches of a decision start from.

    Attributes:
        start: The run itself, rewound or where it was; or a fork of it from before the harm.
        step: Step of that state.
        since: Telemetry of the steps that the run has taken after the fork; empty for the run
            itself.
    """

    start: Run
    step: int
    since: tuple[Telemetry, ...] = ()


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

    def fork_before_harm(
        self, run: Run, first_seen: int, history: Iterable[Telemetry]
    ) -> RewindPoint | None:
        """Return a fork of the run from before the harm; it may skip the data since.

        Args:
            run: Run, which is left as it is.
            first_seen: Step of the first probe that saw the harm.
            history: Telemetry of the run's last steps.

        Returns:
            The fork; None if there is no snapshot from before the harm, or if a step since then is
            not in the history.
        """
        between = run.config.monitor.probe_every
        snapshot = self.at_or_before(first_seen - between)
        if snapshot is None:
            return None
        since = tuple(one for one in history if one.step > snapshot.step)
        if len(since) != run.step - snapshot.step:
            return None
        start = fork_of(run)
        start.restore(snapshot)
        start.flag({*(one.data_index for one in since), *run.upcoming(between)})
        return RewindPoint(start=start, step=snapshot.step, since=since)
