"""The rule that people follow at night: roll back, drop the data around the spike, cut the learning rate.

PaLM (Chowdhery 2022, §5.1) restarted about 100 steps before a spike and skipped 200 to 500 batches; OPT (Zhang 2022, §2.5)
lowered the learning rate at each restart. Both at once here: the data from shortly before the alarm to shortly after is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainenv.run import TrainingRun
from trainenv.types import Event, Intervention, Snapshot, Telemetry, UserError


@dataclass(kw_only=True)
class ByHand:
    """Acts on a run whenever its uncertainty index fires. A responder for `trainenv.driving.drive`.

    Args:
        rewind: steps to go back behind the alarm; the newest snapshot at least that old is taken.
        every: steps between the snapshots kept in memory.
        keep: how many of them are kept.
        skip: steps before the alarm, and after it (at least what was trained before the alarm was read), whose data is dropped.
        lr_scale: factor on the learning rate after going back; 1.0 leaves it.
        patience: alarms answered; after that the run is left alone, so that it cannot be caught in a loop.
    """

    rewind: int = 50
    every: int = 50
    keep: int = 8
    skip: int = 16
    lr_scale: float = 0.8
    patience: int = 10
    _snapshots: deque[Snapshot] = field(default_factory=deque, init=False, repr=False)
    _seen: deque[tuple[int, int]] = field(default_factory=deque, init=False, repr=False)
    _answered: int = field(default=0, init=False, repr=False)
    _run: TrainingRun | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.rewind, self.every, self.keep) < 1 or self.skip < 0 or not 0 < self.lr_scale <= 1:
            raise UserError(f"rewind, every and keep must be at least 1, skip at least 0 and lr_scale in (0, 1], found {self!r}")

    def respond(self, run: TrainingRun, window: Sequence[Telemetry], /) -> list[Event]:
        """Go back and intervene if the index fired in the window; otherwise remember the run as it is."""
        if run is not self._run:
            self._run, self._answered = run, 0
            self._snapshots.clear()
            self._seen.clear()
        self._seen.extend((t.step, t.data_index) for t in window)
        while len(self._seen) > self.skip + len(window):
            self._seen.popleft()
        alarm = next((t for t in window if t.reading.fired), None)
        if alarm is None:
            self._remember(run)
            return []
        behind = [s for s in self._snapshots if s.step <= alarm.step - self.rewind]
        # Going back costs as many steps of the budget as it undoes: near its end the run would stop short of annealing.
        if not behind or self._answered >= self.patience or run.horizon.end - run.step < run.step - behind[-1].step:
            return []
        self._answered += 1
        return self._go_back(run, behind[-1], alarm)

    def _go_back(self, run: TrainingRun, snapshot: Snapshot, alarm: Telemetry) -> list[Event]:
        seen_at = run.step
        seen = [index for step, index in self._seen if alarm.step - self.skip < step]
        harmful = {*seen, *run.upcoming(max(0, alarm.step + self.skip - run.step))}
        run.flag(harmful)
        wanted = max(run.lr_scale * self.lr_scale, run.config.interventions.lr_bounds[0])
        run.rewind(snapshot)
        # Below what was in force at the alarm, not at the snapshot: a second answer cuts deeper than the first.
        intervention = Intervention(lr_scale=wanted / run.lr_scale, skip_batch=bool(run.flagged_ahead))
        run.apply(intervention)
        self._snapshots = deque(s for s in self._snapshots if s.step <= snapshot.step)
        self._seen.clear()
        detail = {"to": snapshot.step, "lr_scale": run.lr_scale, "skipped": len(harmful)}
        return [Event(seen_at, "rewind", detail)]

    def _remember(self, run: TrainingRun) -> None:
        if self._snapshots and run.step - self._snapshots[-1].step < self.every:
            return
        self._snapshots.append(run.snapshot())
        if len(self._snapshots) > self.keep:
            self._snapshots.popleft()
