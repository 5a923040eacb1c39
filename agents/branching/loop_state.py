"""State of the branching loop between two decisions; what resumes, rewinds and waste do to it."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from trainenv.agents.branching.acceptance import AcceptanceStats
from trainenv.agents.branching.alarm_replay import comparable, replay
from trainenv.agents.branching.decision import Decision, Skipped
from trainenv.agents.branching.decision_records import forget_decisions, skip_event
from trainenv.agents.branching.recurrence import Recurrence
from trainenv.agents.branching.rewind_points import RewindPoints
from trainenv.agents.branching.standing_rules import apply, back_off, enable_default_clipping
from trainenv.agents.branching.triggers import Triggers
from trainenv.agents.waste_budget import WasteBudget
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.schema import BranchingSettings
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import read_telemetry, telemetry_of
from trainenv.rollouts.in_place import check_branchable
from trainenv.training.history import KEPT, history_of, sparse_of, stride_of
from trainenv.types import Event, Intervention, Run, RunHistory, Snapshot, Telemetry, UserError
from trainenv.verification import record

_LEAST = 25  # steps beyond an alarm within which another one is the same; see `note_rewind`
_ASKED = "asked"  # trigger on record where nothing but the loop itself called for a decision


@dataclass(kw_only=True)
class LoopState:
    """State of the branching loop on one run. All but the first three are saved with a checkpoint.

    Attributes:
        settings: Settings of the loop.
        folder: Folder of the run.
        store: Checkpoints of the run.
        steps: Configured steps of the run, which an extended run has more of.
        triggers: Reasons for decisions.
        waste: Compute that may be wasted.
        acceptance: Statistics of verified drafts.
        points: Rewind points.
        history: Telemetry of the last steps, at most 512.
        validation: Newest validation loss, nats per token; NaN where unknown.
        pending: Later interventions of an accepted sequence, each with the step it is due at.
        number: Number of decisions so far.
        base_factor: Factor on the base learning rate that the range test has found.
        recurrence: Rewinds in a row that have not helped.
        fault: Message of a fault that was met where no event could be recorded.
    """

    settings: BranchingSettings
    folder: RunFolder
    store: CheckpointStore
    steps: int
    triggers: Triggers
    waste: WasteBudget
    acceptance: AcceptanceStats = field(default_factory=AcceptanceStats)
    points: RewindPoints = field(default_factory=RewindPoints)
    history: deque[Telemetry] = field(default_factory=lambda: deque(maxlen=KEPT))
    sparse: deque[Telemetry] = field(default_factory=lambda: deque(maxlen=KEPT))
    stride: int = 1
    validation: float = math.nan
    pending: list[tuple[int, Intervention]] = field(default_factory=list)
    number: int = 0
    base_factor: float = 1.0
    recurrence: Recurrence = field(default_factory=Recurrence)
    fault: str = ""

    @classmethod
    def of(
        cls, run: Run, settings: BranchingSettings, folder: RunFolder, store: CheckpointStore
    ) -> LoopState:
        """Return the state at the start of a run."""
        return cls(
            settings=settings,
            folder=folder,
            store=store,
            steps=run.config.steps,
            triggers=Triggers(
                settings, run.step, run.config.schedule.warmup, steps=run.config.steps
            ),
            waste=WasteBudget.of(run, settings.max_waste),
        )

    # ── start and resume ──────────────────────────────────────────────────────────────────────────

    def start(self, run: Run) -> list[Event]:
        """Prepare a run that was not steered before, and return the events."""
        self.stride = stride_of(run.step + len(run.lrs_ahead()))
        if run.step and self.folder.telemetry.written:  # steps taken by hand are not recorded
            self._read_history(KEPT, KEPT)
        events = enable_default_clipping(run) if self.settings.default_clip else []
        try:
            check_branchable(run)
        except UserError as error:
            self.triggers.gave_up = True
            events.append(skip_event(run.step, 0, _ASKED, Skipped(str(error), fault=True)))
        self._remember(run)
        return events

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Take on the state that `state_dict` returned, and forget later decisions."""
        self.number = saved["number"]
        self.acceptance = AcceptanceStats(**saved["lessons"])
        self.waste = WasteBudget(**saved["purse"])
        self.waste.allowed *= self.steps / saved.get("steps", self.steps)  # the run may be extended
        self.pending = [(step, Intervention(**fields)) for step, fields in saved["pending"]]
        self.triggers.load_state_dict(saved["alarms"])
        if saved["validation"] is not None:
            self.validation = saved["validation"]
        self.base_factor = saved["found"]
        self.recurrence = Recurrence.of(saved.get("recurrence", {}))
        self.stride = saved.get("stride", 1)
        if saved["history"]:
            self._read_history(saved["history"], saved.get("sparse", 0))
        forget_decisions(self.folder.path, self.number)
        steps = set(self.store.steps())
        self.points.snapshots.extend(
            self.store.load(step) for step in saved["remembered"] if step in steps
        )

    def _read_history(self, steps: int, sparse: int) -> None:
        kept = read_telemetry(self.folder.path, kept_only=True)
        self.history.extend(telemetry_of(kept.tail(steps)))
        if self.stride > 1 and sparse:
            recent = telemetry_of(kept.tail(self.stride * (sparse + 1)))
            self.sparse.extend(sparse_of(recent, self.stride)[-sparse:])

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "number": self.number,
            "steps": self.steps,
            "pending": [[step, record.changes(one)] for step, one in self.pending],
            "history": len(self.history),
            "sparse": len(self.sparse),
            "stride": self.stride,
            "remembered": self.points.steps,
            "alarms": self.triggers.state_dict(),
            "lessons": self.acceptance.state_dict(),
            "purse": self.waste.state_dict(),
            "validation": self.validation,
            "found": self.base_factor,
            "recurrence": self.recurrence.state_dict(),
        }

    # ── steps of the run ──────────────────────────────────────────────────────────────────────────

    def observe(self, window: Sequence[Telemetry]) -> None:
        """Take in steps of the run, in order."""
        if self.stride > 1 and window:
            recent = [*list(self.history)[1 - self.stride :], *window]
            self.sparse.extend(sparse_of(recent, self.stride, after=window[0].step - 1))
        self.history.extend(window)
        self.triggers.observe(window)

    def history_of(self, run: Run, *, validation: float = math.nan) -> RunHistory:
        """Return the history of the run, which is at the step that was observed last."""
        return history_of(
            run,
            list(self.history),
            horizon=self.settings.horizon,
            validation=validation,
            sparse=list(self.sparse),
            stride=self.stride,
        )

    @property
    def fired_lately(self) -> bool:
        """True if the uncertainty index fired since about the last checkpoint decision.

        A raised rate makes the next spike worse.
        """
        steps = self.settings.every
        return any(one.reading.fired for one in itertools.islice(reversed(self.history), steps))

    @property
    def highest_lr(self) -> float:
        """Largest factor on the base learning rate; drafts look ahead less than the whole run."""
        return 0.0 if self.triggers.careful else self.settings.max_lr_factor * self.base_factor

    def apply_due(self, run: Run) -> list[Event]:
        """Put in force what is due of an accepted sequence, and return the events."""
        due = [one for step, one in self.pending if step <= run.step]
        self.pending = [(step, one) for step, one in self.pending if step > run.step]
        highest = self.highest_lr
        due = [one for one in due if one.lr_scale <= 1 or run.lr_scale * one.lr_scale <= highest]
        events = []
        for one in due:
            with suppress(UserError):  # by now it would leave the bounds
                if not one.does_nothing:
                    events.append(apply(run, one, pending=True))
        return events

    def remember_if_saved(self, run: Run, before: int, *, sound: bool, rewound: bool) -> bool:
        """Add a rewind point where a checkpoint is saved, and tell whether to save one now.

        So a resumed run has the same rewind points.

        Args:
            run: Run after a block, and the decision there if one was taken.
            before: Step before the block.
            sound: True if the last loss of the block is finite.
            rewound: True if the decision went back; the run is then saved in any case.
        """
        save = sound and self._is_worth_saving(run)
        if rewound or save or (sound and self.store.due(before, run.step)):
            self._remember(run)
        return save

    def _is_worth_saving(self, run: Run) -> bool:
        """Tell whether no harm waits for an answer and the last rewind point is some time ago."""
        if "harm" not in self.settings.triggers or self.triggers.harm_began is not None:
            return False
        last = self.points.newest.step if self.points.newest else 0
        return run.step - last >= self.settings.save_every

    def _remember(self, run: Run) -> None:
        most = min(self.settings.rewind_points, self.store.keep_last)
        self.points.remember(run, most=most)

    # ── rewinds ───────────────────────────────────────────────────────────────────────────────────

    def go_back(self, run: Run, alarm: int, harm: float, *, diverged: bool) -> list[Event]:
        """Rewind the run to before an alarm, and return the event.

        Without a snapshot from before it, or with too little left to waste, the run stays.

        Args:
            run: Run.
            alarm: Step of the alarm.
            harm: Nats of harm, for the record.
            rate: Factor on the learning rate that it went back from.
            diverged: True if the run has diverged: then the newest snapshot will do as well.
        """
        at = run.step
        snapshots = [self.points.at_or_before(alarm - self.settings.rewind)]
        if diverged:
            snapshots.append(self.points.newest)
        for snapshot in snapshots:
            if snapshot is None or snapshot.step >= at:
                continue
            flops = (at - snapshot.step) * run.flops_ahead
            if flops <= self.waste.left:
                rate = run.lr_scale
                found = self._replayed(run, snapshot, flops)
                run.rewind(snapshot)
                return [
                    *found,
                    self.note_rewind(at, run, flops=flops, harm=harm, rate=rate, diverged=diverged),
                ]
        return []

    def _replayed(self, run: Run, snapshot: Snapshot, flops: float) -> list[Event]:
        """Return the finding of a replay of the steps that a rewind undoes, if it is asked for.

        Args:
            run: Run that is about to go back.
            snapshot: Snapshot that it goes back to.
            flops: FLOPs of the steps between them, which the replay costs once more.
        """
        seen = [one for one in self.history if one.step > snapshot.step]
        affordable = 2 * flops <= self.waste.left
        if not (self.settings.replay_alarms and affordable and comparable(run, snapshot, seen)):
            return []
        found = replay(run, snapshot, seen)
        self.waste.throw_away(flops)
        self.waste.owe(run, flops)
        return [found]

    def note_rewind(
        self,
        at: int,
        start: Run,
        *,
        flops: float,
        harm: float,
        rate: float,
        diverged: bool = False,
    ) -> Event:
        """Forget what the run did before it went back, and return the event.

        Args:
            at: Step that it went back from.
            start: Run in the state that it went back to.
            flops: FLOPs of the steps that are undone.
            harm: Nats of harm, for the record.
            rate: Factor on the learning rate that it went back from.
            diverged: True if the run has diverged; another divergence has the same cause, even if
                it comes later.
        """
        to = start.step
        quiet = self.settings.refractory_steps
        within = max(_LEAST, quiet if diverged else quiet // 10)
        self.recurrence.note(at, rate=rate, within=within)
        self.waste.throw_away(flops)
        self.points.forget_after(to)
        self.history = deque((one for one in self.history if one.step <= to), maxlen=KEPT)
        self.sparse = deque((one for one in self.sparse if one.step <= to), maxlen=KEPT)
        self.validation = math.nan
        self.pending = [(step, one) for step, one in self.pending if step <= to]
        return Event(at, "rewind", {"to": to, "lr_scale": start.lr_scale, "harm": harm})

    def first_non_finite(self, step: int) -> int:
        """Return the first step of the newest stretch of non-finite losses; `step` without one."""
        for telemetry in reversed(self.history):
            if math.isfinite(telemetry.loss):
                break
            step = telemetry.step
        return step

    def why_no_rewind(self, run: Run) -> str:
        """Return the reason that a run which has diverged does not go back, and what to do."""
        if self.points.newest is None:
            return "no state of it is there to go back to"
        away = run.step - self.points.newest.step
        left = self.waste.left / run.flops_ahead
        return (
            f"going back throws away {away} steps, of {left:.0f} that still may be: "
            "resume from an earlier checkpoint with a lower learning rate, "
            "or allow more by branching.max_waste"
        )

    # ── decisions ─────────────────────────────────────────────────────────────────────────────────

    def throw_away(self, run: Run, decision: Decision, flops: float) -> None:
        """Charge FLOPs that a decision has wasted to the run's budget."""
        self.waste.throw_away(flops, trial=decision.is_trial)
        self.waste.owe(run, flops)
        decision.accounted = run.ledger.total

    def skip(self, run: Run, decision: Decision, skipped: Skipped) -> None:
        """Account for a decision that is not taken, and add its events."""
        self.throw_away(run, decision, run.ledger.total - decision.accounted)
        self.note_skip(run, decision, skipped)
        if skipped.no_gain:
            self.triggers.note_plan(followed=False)
        if skipped.control_failed and (reason := self.triggers.note_failed_control()):
            decision.events.append(Event(run.step, "gave_up", {"reason": reason}))
        if decision.trigger == "diverged" and not run.diverged:
            decision.events += self.back_off(run)

    def back_off(self, run: Run) -> list[Event]:
        """Lower the learning rate and clip, unless that has not helped several times."""
        return [] if self.recurrence.looks_structural else back_off(run)

    def report_recurrence(self, run: Run) -> list[Event]:
        """Give up, and return the event, once alarms have come back after every answer."""
        if self.triggers.gave_up or not self.recurrence.looks_structural:
            return []
        self.triggers.gave_up = True
        return [Event(run.step, "gave_up", {"reason": self.recurrence.reason})]

    def note_skip(self, run: Run, decision: Decision, skipped: Skipped) -> None:
        """Add the event of a decision that is not taken, or of a fault once it was taken."""
        decision.events.append(skip_event(run.step, decision.number, decision.trigger, skipped))

    def report_fault(self, run: Run) -> list[Event]:
        """Return the event of a fault that was met since the last block, if any."""
        if not self.fault:
            return []
        skipped = Skipped(self.fault, fault=True)
        self.fault = ""
        return [skip_event(run.step, self.number, _ASKED, skipped)]
