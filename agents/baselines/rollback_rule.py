"""Rule that engineers follow by hand: roll back, skip the data around the spike, lower the rate.

Two teams published how they did it (`STYLES`). The default settings of `RollbackRule` combine both.

    palm   Chowdhery 2022 (arXiv:2204.02311), §5.1: restart from about 100 steps before the spike,
           skip 200 to 500 batches seen before and during it, leave the learning rate alone; about
           20 spikes in the largest run
    opt    Zhang 2022 (arXiv:2205.01068), §2.5: restart from an earlier checkpoint with a lower
           learning rate, and clip more tightly later in the run (§2.2: at 0.3 instead of 1.0); no
           figures for how far back and how much lower

Lengths are shares of the budget. A small run represents one of 16 000 steps, so that 100 steps of
the papers are 9 of 1500.

Deviations: the uncertainty index raises the alarm, not a person. Where the OPT paper gives no
figure, ours are half a checkpoint interval back at least, and × 0.8 each time. Tighter clipping is
ZClip, because action spaces set policies and no thresholds. The rule goes back to one place at most
twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from trainenv.checkpoints.store import CheckpointStore
from trainenv.loop import Callback, CallbackResult
from trainenv.records.run_folder import RunFolder
from trainenv.tools.checks import choice, count, number
from trainenv.tools.spelling import nearest
from trainenv.types import (
    CLIP_POLICIES,
    ClipName,
    Event,
    Intervention,
    Run,
    Snapshot,
    Telemetry,
    UserError,
    as_bool,
    as_whole,
)

_FULL_LENGTH = 16_000  # steps of the run that a small one represents


@dataclass(frozen=True, kw_only=True)
class Style:
    """Rule of a team; lengths are in steps of a run of 16 000.

    Args:
        rewind: Least number of steps to go back from the alarm.
        every: Steps between the snapshots to go back to.
        skip: Number of batches skipped before the alarm, and as many after it; None for none.
        lr_scale: Factor on the learning rate.
        clip: Clip policy to put in force; None for the one in force.
        clip_from: Number of the rollback, from 1 on, that first puts it in force.
        patience: Largest number of rollbacks.
        repeats: Largest number of rollbacks for the same alarm.
    """

    rewind: int
    every: int
    skip: int | None
    lr_scale: float
    clip: ClipName | None = None
    clip_from: int = 2
    patience: int = 20
    repeats: int = 2


STYLES: Mapping[str, Style] = {
    "palm": Style(rewind=100, every=100, skip=175, lr_scale=1.0),
    "opt": Style(rewind=500, every=1000, skip=None, lr_scale=0.8, clip="zclip"),
}


@dataclass(kw_only=True)
class RollbackRule(Callback):
    """Callback that rolls the run back whenever its uncertainty index fires.

    Args:
        rewind: Least number of steps to go back from the alarm, to the newest snapshot there.
        every: Steps between the snapshots kept in memory.
        keep: Number of snapshots kept in memory.
        skip: Number of steps before the alarm, and after it, whose data is skipped; at least all
            that were trained before the alarm was read.
        lr_scale: Factor on the learning rate after a rollback.
        patience: Largest number of rollbacks; after that the run is left alone, so that it always
            ends.
        drops: True to skip data, including the data that the index has flagged.
        clip: Clip policy to put in force after a rollback; None for the one in force.
        clip_from: Number of the rollback, from 1 on, that first puts it in force.
        repeats: Largest number of rollbacks in a row for alarms within `rewind` + 2 · `skip` steps
            of each other; None for no limit but `patience`.

    Raises:
        UserError: A setting is out of range.
    """

    rewind: int = 50
    every: int = 50
    keep: int = 8
    skip: int = 16
    lr_scale: float = 0.8
    patience: int = 10
    drops: bool = True
    clip: ClipName | None = None
    clip_from: int = 1
    repeats: int | None = None
    _snapshots: deque[Snapshot] = field(default_factory=deque, init=False, repr=False)
    _seen: deque[tuple[int, int]] = field(default_factory=deque, init=False, repr=False)
    _answered: int = field(default=0, init=False, repr=False)
    # Alarms answered in a row at one place.
    _here: list[int] = field(default_factory=list, init=False, repr=False)
    _run: Run | None = field(default=None, init=False, repr=False)
    _resumed: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            for name in ("rewind", "every", "keep"):
                setattr(self, name, count(name, getattr(self, name), least=1))
            for name in ("skip", "patience", "clip_from"):
                setattr(self, name, count(name, getattr(self, name), least=0))
            self.lr_scale = number("lr_scale", self.lr_scale, above=0, most=1)
            self.drops = as_bool(self.drops, "drops")
            if self.repeats is not None:
                self.repeats = count("repeats", self.repeats, least=1)
            if self.clip is not None:
                choice("clip", self.clip, CLIP_POLICIES)
        except UserError as error:
            raise UserError(f"{error}, in {self!r}") from None

    @classmethod
    def in_style(cls, name: str, steps: int) -> Self:
        """Return the rule of one of the teams, scaled to a run.

        Args:
            name: Name in `STYLES`.
            steps: Number of steps of the run.

        Raises:
            UserError: There is no such style.
        """
        if name not in STYLES:
            raise UserError(
                f"style must be one of {', '.join(STYLES)}, "
                f"found {name!r}{nearest(name, tuple(STYLES))}"
            )
        style = STYLES[name]
        scale = as_whole(steps, "steps", least=1) / _FULL_LENGTH
        skip = 0
        if style.skip is not None:
            skip = max(1, round(style.skip * scale))
        return cls(
            rewind=max(1, round(style.rewind * scale)),
            every=max(1, round(style.every * scale)),
            skip=skip,
            lr_scale=style.lr_scale,
            patience=style.patience,
            drops=style.skip is not None,
            clip=style.clip,
            clip_from=style.clip_from,
            repeats=style.repeats,
        )

    def on_train_begin(self, run: Run, folder: RunFolder, store: CheckpointStore, /) -> None:
        """Take the regular checkpoints of a resumed run as snapshots. See `Callback`."""
        if self._run is not None and self._run is not run:
            self._forget()
        self._run = run
        if self._resumed:
            self._resumed = False
            for step in store.steps():
                # Each line of history saves the regular ones again; others may be of a line that
                # the run has left.
                if 0 < step <= run.step and step % store.every == 0 and self._due(step):
                    self._keep(store.load(step))

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Roll back if the index fired; otherwise keep a snapshot if one is due. See `Callback`."""
        self._seen.extend((t.step, t.data_index) for t in window)
        while len(self._seen) > self.skip + len(window):
            self._seen.popleft()
        # A single non-finite loss that leaves the weights alone is a batch without labels, and no
        # spike.
        alarm = next(
            (t for t in window if t.reading.fired and (math.isfinite(t.loss) or run.diverged)), None
        )
        if alarm is None:
            if self._due(run.step):
                self._keep(run.snapshot())
            return CallbackResult()
        behind = [s for s in self._snapshots if s.step <= alarm.step - self.rewind]
        # A rollback costs as many steps of the budget as it undoes: near its end, the run would
        # stop before it is annealed.
        if (
            not behind
            or run.horizon.end - run.step < run.step - behind[-1].step
            or self._has_answered_enough(alarm)
        ):
            return CallbackResult()
        self._answered += 1
        self._here.append(alarm.step)
        return CallbackResult(events=[self._go_back(run, behind[-1], alarm)])

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the snapshots. See `Callback`."""
        return {
            "answered": self._answered,
            "here": list(self._here),
            "seen": [list(pair) for pair in self._seen],
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take on the state that `state_dict` returned. See `Callback`."""
        self._forget()
        self._run = None
        self._resumed = True
        if state:
            self._answered = int(state["answered"])
            self._here = [int(step) for step in state["here"]]
            self._seen.extend((int(step), int(index)) for step, index in state["seen"])

    def _has_answered_enough(self, alarm: Telemetry) -> bool:
        """Tell whether enough alarms were answered, in all or at this place."""
        if self._here and abs(alarm.step - self._here[-1]) > self.rewind + 2 * self.skip:
            self._here = []
        if self._answered >= self.patience:
            return True
        return self.repeats is not None and len(self._here) >= self.repeats

    def _forget(self) -> None:
        self._answered = 0
        self._here = []
        self._snapshots.clear()
        self._seen.clear()

    def _go_back(self, run: Run, snapshot: Snapshot, alarm: Telemetry) -> Event:
        seen_at = run.step
        harmful = set[int]()
        if self.drops:
            seen = [index for step, index in self._seen if alarm.step - self.skip < step]
            harmful = {*seen, *run.upcoming(max(0, alarm.step + self.skip - run.step))}
            run.flag(harmful)
        wanted = max(run.lr_scale * self.lr_scale, run.config.interventions.lr_bounds[0])
        run.rewind(snapshot)
        clip: ClipName | None = None
        if self._answered >= self.clip_from:
            clip = self.clip
        # The rate is lowered from the one at the alarm, not at the snapshot, so that a second
        # rollback lowers it further.
        intervention = Intervention(
            lr_scale=wanted / run.lr_scale,
            clip=clip,
            skip_batch=self.drops and bool(run.flagged_ahead),
        )
        run.apply(intervention)
        self._snapshots = deque(s for s in self._snapshots if s.step <= snapshot.step)
        self._seen.clear()
        return Event(
            seen_at,
            "rewind",
            {"to": snapshot.step, "lr_scale": run.lr_scale, "skipped": len(harmful)},
        )

    def _due(self, step: int) -> bool:
        return not self._snapshots or step - self._snapshots[-1].step >= self.every

    def _keep(self, snapshot: Snapshot) -> None:
        self._snapshots.append(snapshot)
        if len(self._snapshots) > self.keep:
            self._snapshots.popleft()
