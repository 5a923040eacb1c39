"""The loop on a run that is driven: trigger, rewind, draft, verify, collapse. See `agents.branching`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.branching.alarms import Alarms
from agents.branching.detour import Detour, detour
from agents.branching.drafting import Drafting
from agents.branching.lessons import Lessons, teach
from agents.branching.purse import Purse, Statement
from agents.branching.recording import event_of, forget_decisions, start_of
from agents.branching.undrafted import calmed, in_force, insured
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config import BranchingConfig
from trainenv.driving import Responder, Response
from trainenv.history import history_of
from trainenv.interventions import ActionCodec
from trainenv.records.folder import RunFolder
from trainenv.records.parquet import read_telemetry, telemetry_of
from trainenv.rollouts import Rollouts
from trainenv.run import TrainingRun
from trainenv.types import (
    Event,
    Intervention,
    Learner,
    Plan,
    Planner,
    RunHistory,
    Snapshot,
    Telemetry,
    UserError,
    Verdict,
    WorldModel,
)
from trainenv.wrappers import record
from trainenv.wrappers.rules import Better
from trainenv.wrappers.rules import make as make_rule
from trainenv.wrappers.verification import Verification, adopt

_HISTORY = 512  # steps: what a forecast looks at
_SHOWS = 4  # times as long a branch is trained where it must show that it is better


@dataclass(frozen=True, kw_only=True)
class _Verified:
    """Branches that were trained, judged and put on record; none is committed yet."""

    rollouts: Rollouts
    verdict: Verdict
    where: Path
    told: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Draft(_Verified):
    """Those of a draft."""

    plan: Plan
    history: RunHistory


@dataclass(kw_only=True)
class Branching(Responder):
    """Steers a run whenever it is called for. A responder for `trainenv.driving.drive`.

    Args:
        planner: drafts futures.
        model: forecasts them: a `WorldModel`, or a `Learner` that goes on learning from what is verified; None: the planner
            must do without.
        config: when and how much; the run's own where left out.
        verification: how; made of the configuration where left out.
        drafting: what goes into a planning problem beside the run.
    """

    planner: Planner
    model: WorldModel | Learner | None = None
    config: BranchingConfig | None = None
    verification: Verification | None = None
    drafting: Drafting = field(default_factory=Drafting)

    def __post_init__(self) -> None:
        if not isinstance(self.planner, Planner):
            raise UserError(f"a planner needs a method plan(problem), found {self.planner!r:.80}; take planners.make('grid')")
        if not (self.model is None or isinstance(self.model, Learner) or hasattr(self.model, "forecast")):
            raise UserError(f"a model needs a method forecast, found {self.model!r:.80}; take worldmodel.load_pretrained()")
        self._loaded: dict[str, Any] = {}
        self._stood: tuple[TrainingRun, int] | None = None  # the run and its step when it last responded
        self._forget()

    def _forget(self) -> None:
        """All that is remembered of a run."""
        self._number, self._settled = 0, 0.0  # FLOPs of the ledger that are on the purse, or the run's own
        self._lessons, self._purse = Lessons(), Purse(0.0)
        self._validation = math.nan  # the newest
        self._found = 1.0  # factor on the base learning rate that the start of the run has found
        self._pending: list[tuple[int, Intervention]] = []
        self._history: deque[Telemetry] = deque(maxlen=_HISTORY)
        self._remembered: deque[Snapshot] = deque()

    def statement(self, run: TrainingRun) -> Statement:
        """What steering a run may cost at most."""
        settings, verification = self.config or run.config.branching, self.verification
        width = verification.top_k if verification else settings.top_k
        workers = verification.workers if verification else settings.workers
        return Statement.of(run, settings, width=width, workers=workers)

    # ── a responder ─────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, run: TrainingRun, folder: RunFolder, store: CheckpointStore, /) -> None:
        """See `Responder`."""
        state, self._loaded = self._loaded, {}
        self._folder, self._store = folder.path, store
        self._settings = self.config or run.config.branching
        self._verifying = self.verification or _verification(self._settings)
        self._codec = ActionCodec(run.config.interventions)
        if not state and self._stood == (run, run.step):
            return  # it goes on in the same process, and knows all that it needs
        self._forget()
        self._alarms = Alarms(self._settings, run.step, run.config.schedule.warmup)
        if state:
            self._resume(state, folder, store)
        else:
            self._purse = Purse.of(run, self._settings.share)
            self._read_history(folder, _HISTORY if run.step else 0)
            for event in insured(run) if self._settings.insure else []:
                folder.event(event)
            self._remember(run)

    def within(self, run: TrainingRun, /) -> int:
        """See `Responder`. Harm is answered where it is seen, at the look itself."""
        monitor = run.config.monitor
        if not (monitor.enabled and monitor.probe_every and "harm" in self._settings.triggers):
            return monitor.block
        return (1 - run.step) % monitor.probe_every or monitor.probe_every

    def respond(self, run: TrainingRun, window: Sequence[Telemetry], /) -> Response:
        """See `Responder`."""
        self._history.extend(window)
        self._alarms.see(window)
        events = self._due(run)
        at, before = run.step, run.step - len(window)
        why = self._alarms.why(run, window, least=4 * self._verifying.verify_steps, busy=bool(self._pending))
        if why == "harm":
            response = self._go_round(run, events)
        else:
            response = self._decide(run, why, window, events) if why else Response(events=events)
        self._alarms.passed(at)
        rewound, sound = any(event.kind == "rewind" for event in response.events), math.isfinite(window[-1].loss)
        save = sound and self._worth_saving(run)
        # Just what is saved: a run that is gone on with has these to go back to.
        if rewound or save or (sound and self._store.due(before, run.step)):
            self._remember(run)
        self._stood = run, run.step
        return replace(response, save=save)

    def validated(self, step: int, loss: float, /) -> None:
        """See `Responder`."""
        self._alarms.validated(step, loss)
        self._validation = loss

    def state_dict(self) -> dict[str, Any]:
        """See `Responder`."""
        return {
            "number": self._number,
            "pending": [[step, record.changes(one)] for step, one in self._pending],
            "history": len(self._history),
            "remembered": [snapshot.step for snapshot in self._remembered],
            "alarms": self._alarms.state_dict(),
            "lessons": self._lessons.state_dict(),
            "purse": self._purse.state_dict(),
            "validation": self._validation,
            "found": self._found,
            "learned": self.model.state_dict() if isinstance(self.model, Learner) else None,
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """See `Responder`; `begin` takes it on."""
        self._loaded = state

    def _resume(self, state: dict[str, Any], folder: RunFolder, store: CheckpointStore) -> None:
        self._number, self._lessons, self._purse = state["number"], Lessons(**state["lessons"]), Purse(**state["purse"])
        self._pending = [(step, Intervention(**fields)) for step, fields in state["pending"]]
        self._alarms.load_state_dict(state["alarms"])
        self._validation = math.nan if state["validation"] is None else state["validation"]
        self._found = state["found"]
        self._read_history(folder, state["history"])
        forget_decisions(folder.path, self._number)
        there = set(store.steps())
        self._remembered.extend(store.load(step) for step in state["remembered"] if step in there)
        if isinstance(self.model, Learner) and state["learned"] is not None:
            self.model.load_state_dict(state["learned"])

    def _read_history(self, folder: RunFolder, steps: int) -> None:
        if steps:
            self._history.extend(telemetry_of(read_telemetry(folder.path, kept_only=True).tail(steps)))

    def _remember(self, run: TrainingRun) -> None:
        """Keep a point to go back to."""
        if self._remembered and self._remembered[-1].step == run.step:
            self._remembered.pop()
        self._remembered.append(run.snapshot())
        if len(self._remembered) > min(self._settings.keep, self._store.keep_last):
            self._remembered.popleft()

    def _worth_saving(self, run: TrainingRun) -> bool:
        """Whether this is a state to go back to, and the last one is some time ago."""
        if "harm" not in self._settings.triggers or self._alarms.rising is not None:
            return False
        last = self._remembered[-1].step if self._remembered else 0
        return run.step - last >= self._settings.save_every

    # ── a decision ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, run: TrainingRun, why: str, window: Sequence[Telemetry], events: list[Event]) -> Response:
        at, harm, lost = run.step, self._alarms.harm, not math.isfinite(window[-1].loss)
        self._number += 1
        ready = self._alarms.range_test.draft(at) if why == "warmup" else None
        alarm = self._alarms.answered(at, lost=lost)
        if alarm is not None:
            events += self._go_back(run, alarm, harm, lost=lost)
            if lost and run.step == at:
                return Response(events=events)  # there is nothing to go back to: the run has diverged
        began, self._settled = run.step, run.ledger.total
        try:  # whatever a planner, a model, a rule or a full disk may raise: the run is as it was, and goes on
            when = {"number": self._number, "why": why, "at": at, "step": began, "harm": harm}
            found: _Draft | str = self._verified(run, when, ready)
        except Exception as error:
            found = _told(error)
            self._throw_away(run, run.ledger.total - self._settled)
        if isinstance(found, str):
            events.append(Event(began, "skipped", {"number": self._number, "why": why, "reason": found}))
            return Response(events=[*events, *(calmed(run, self._codec) if lost else [])])
        kept = adopt(found.rollouts, found.verdict)
        self._throw_away(run, found.verdict.wasted)
        if not kept:  # the control is lost, and nothing held up
            events += [*self._go_back(run, began, harm, lost=True), *calmed(run, self._codec)]
        self._history.extend(kept)
        self._alarms.see(kept)
        return Response(events=[*events, *self._collapsed(run, why, began, found)], kept=kept)

    def _verified(self, run: TrainingRun, when: dict[str, Any], ready: Plan | None) -> _Draft | str:
        """Draft, verify, put on record. Or in words why nothing is verified."""
        verifying, steps = self._asked(ready)
        if not math.isfinite(self._price(run, verifying, 1, steps)):
            return (
                f"no budget is left: at least {steps} steps' worth are thrown away, of {self._purse.left / run.flops_ahead:.0f}"
            )
        history, plan = self._draft(run, ready)
        wanted = self._lessons.branches(verifying.top_k)
        width = self._purse.widest(wanted, lambda k: self._price(run, verifying, k, steps))
        verification = replace(verifying, top_k=max(width, 1), width=self._lessons.width)
        if not width or not verification.chosen(plan):
            return "; ".join(plan.faults) or "no draft promises enough"
        rollouts = verification.rollouts(run, decision_steps=history.decision_steps)
        where = record.folder_of(self._folder, run.step, self._number)
        start = start_of(run, where, replayable=self._settings.replayable)
        verdict = verification.verify(rollouts, plan, horizon=4 * history.decision_steps, steps=steps)
        told = record.record_of(verdict, plan, verification) | when
        told |= {"start": start, "decision_steps": history.decision_steps, "end": {"fingerprint": ""}}
        record.write(where, told)  # what can't be put on record is not done
        return _Draft(rollouts=rollouts, verdict=verdict, where=where, told=told, plan=plan, history=history)

    @property
    def _highest(self) -> float:
        """What drafts may raise the learning rate to, as a factor on the base rate: they see a stretch, not the whole run."""
        return 0.0 if self._alarms.careful else self._settings.reach * self._found

    def _asked(self, ready: Plan | None) -> tuple[Verification, int]:
        """How a draft is verified, and for how many steps."""
        usual = self._verifying
        if ready is not None:  # no model foresees it, so real steps must show that it is better: more of them, of one branch
            return replace(usual, top_k=1, rule=Better(), worth=0.0), _SHOWS * usual.verify_steps
        return usual, self._lessons.steps(usual.verify_steps)

    def _draft(self, run: TrainingRun, ready: Plan | None) -> tuple[RunHistory, Plan]:
        """What is known now, and what the planner makes of it where no draft is ready."""
        # The newest validation will do: 2 % off it, forecasts of changes differ by 1e-4, and most drafts promise nothing.
        history = history_of(run, list(self._history), horizon=self._settings.horizon, validation=self._validation)
        if ready is not None:
            return history, ready
        model = self.model.model if isinstance(self.model, Learner) else self.model
        generator = np.random.default_rng([run.config.seed, run.step, self._number])
        drafting = replace(self.drafting, parts=self._settings.parts, highest=self._highest)
        plan = self.planner.plan(drafting.problem(run, history, self._codec, model, generator))
        if not isinstance(plan, Plan):
            raise UserError(f"a planner must return a Plan, found {plan!r:.80}")
        flops = plan.cost.futures * float(getattr(model, "flops_per_future", 0.0))
        run.ledger.charge("plan", flops)
        self._purse.owe(run, flops)
        self._settled = run.ledger.total
        return history, plan

    def _price(self, run: TrainingRun, verifying: Verification, branches: int, steps: int) -> float:
        """FLOPs that a decision throws away at most, where all is lost the control too; inf: more than there are."""
        control, evaluation = steps * run.flops_ahead, run.flops_per_evaluation
        flops = verifying.thrown_away(run, branches, steps) + control + evaluation
        return flops if self._affords(run, flops) else math.inf

    def _affords(self, run: TrainingRun, flops: float) -> bool:
        """Whether so many FLOPs may be thrown away."""
        return flops <= min(self._purse.left, (run.horizon.end - run.step) * run.flops_ahead - self._purse.owed)

    def _throw_away(self, run: TrainingRun, flops: float) -> None:
        self._purse.throw_away(flops)
        self._purse.owe(run, flops)

    def _collapsed(self, run: TrainingRun, why: str, began: int, found: _Draft) -> list[Event]:
        """The run has become one of its futures: what follows from that, and is learned from it."""
        verdict, steps = found.verdict, found.history.decision_steps
        became = verdict.winner or verdict.control
        self._validation = math.nan if became.lost else became.outcome.validation[-1]
        self._became(run, found)
        if verdict.winner is not None:  # its later parts come due a decision apart; those within the branch are in force already
            later = enumerate(verdict.winner.interventions)
            self._pending = [(began + k * steps, one) for k, one in later if k * steps >= verdict.steps]
        faults = list(found.plan.faults)
        if why == "warmup":  # it says nothing of the planner's drafts
            self._found = run.lr_scale
        else:
            self._lessons.learn(verdict)
        if isinstance(self.model, Learner):
            try:
                flops = teach(self.model, f"{run.config.name}-{run.config.seed}", found.history, verdict)
            except Exception as error:  # the model is as it was, or near it; the run does not hang on it
                faults.append(f"the model did not learn: {_told(error)}")
            else:
                run.ledger.charge("model", flops)
                self._purse.owe(run, flops)
        where = str(found.where.relative_to(self._folder))
        events = [event_of(began, verdict, {"number": self._number, "why": why, "folder": where}, faults), *self._due(run)]
        if reason := self._alarms.judged(accepted=verdict.accepted is not None):
            events.append(Event(run.step, "gave_up", {"reason": reason}))
        return events

    def _became(self, run: TrainingRun, found: _Verified) -> None:
        """Put on record what the run has become."""
        with suppress(OSError):  # it is on record but for this
            record.write(found.where, found.told | {"end": {"fingerprint": run.fingerprint()}})

    # ── harm that has begun ─────────────────────────────────────────────────────────────────────────────────────────

    def _go_round(self, run: TrainingRun, events: list[Event]) -> Response:
        """Try another way to where the run is, and take it if less harm lies on it."""
        self._number += 1
        at, harm, self._settled = run.step, self._alarms.harm, run.ledger.total
        what = {"number": self._number, "why": "harm"}
        try:  # as in a decision
            way = detour(run, self._alarms.met(), self._remembered, self._history)
            if not self._affords(run, way.price(run)):
                steps = self._purse.left / run.flops_ahead
                raise UserError(f"no budget is left: {way.steps} steps' worth may be thrown away, of {steps:.0f}")
            found = self._tried(run, way, what | {"at": at, "harm": harm})
        except Exception as error:
            self._throw_away(run, run.ledger.total - self._settled)
            return Response(events=[*events, Event(at, "skipped", what | {"reason": _told(error)})])
        verdict, kept = found.verdict, adopt(found.rollouts, found.verdict)
        if verdict.winner is not None:
            events.append(self._left(at, way.start.snapshot(), way.steps * run.flops_ahead, harm))
            self._alarms.gone_round(at)
            self._history.extend(kept)
            self._alarms.see(kept)
            self._validation = verdict.winner.outcome.validation[-1]
        self._throw_away(run, verdict.wasted)
        self._became(run, found)
        where = str(found.where.relative_to(self._folder))
        events.append(event_of(way.start.step, verdict, what | {"folder": where}, ()))
        if verdict.winner is not None:
            events.append(in_force(run, verdict.winner.interventions[-1], pending=True))
        return Response(events=events, kept=kept)

    def _tried(self, run: TrainingRun, way: Detour, when: dict[str, Any]) -> _Verified:
        """A detour that was trained, judged and put on record."""
        where = record.folder_of(self._folder, way.start.step, self._number)
        start = start_of(way.start, where, replayable=self._settings.replayable)
        verification = way.verification(self._verifying)
        rollouts, verdict = way.verified(run, verification)
        told = record.record_of(verdict, way.plan, verification, control="recorded") | when
        told |= {"step": way.start.step, "start": start, "decision_steps": way.steps, "end": {"fingerprint": ""}}
        record.write(where, told)
        return _Verified(rollouts=rollouts, verdict=verdict, where=where, told=told)

    # ── what is done to the run ─────────────────────────────────────────────────────────────────────────────────────

    def _go_back(self, run: TrainingRun, alarm: int, harm: float, *, lost: bool) -> list[Event]:
        """Rewind to before the alarm, if there is a snapshot and, unless the run is lost, the purse allows it."""
        behind = [s for s in self._remembered if s.step <= alarm - self._settings.rewind]
        behind = behind or (list(self._remembered)[-1:] if lost else [])
        if not behind or behind[-1].step == run.step:
            return []
        snapshot, at = behind[-1], run.step
        flops = (at - snapshot.step) * run.flops_ahead
        if not lost and flops > self._purse.left:
            return []
        run.rewind(snapshot)
        return [self._left(at, snapshot, flops, harm)]

    def _left(self, at: int, snapshot: Snapshot, flops: float, harm: float) -> Event:
        """The run has gone back from step `at` to a snapshot; that has taken the FLOPs off its budget."""
        start = snapshot.step
        self._purse.throw_away(flops)
        self._remembered = deque(s for s in self._remembered if s.step <= start)
        self._history = deque((t for t in self._history if t.step <= start), maxlen=_HISTORY)
        self._validation = math.nan
        self._pending = [(step, one) for step, one in self._pending if step <= start]
        return Event(at, "rewind", {"to": start, "lr_scale": snapshot.state["lr_scale"], "harm": harm})

    def _due(self, run: TrainingRun) -> list[Event]:
        """Put in force what an accepted sequence has left for now."""
        due = [one for step, one in self._pending if step <= run.step]
        due = [one for one in due if one.lr_scale <= 1 or run.lr_scale * one.lr_scale <= self._highest]
        self._pending = [(step, one) for step, one in self._pending if step > run.step]
        events = []
        for one in due:
            with suppress(UserError):  # out of bounds by now
                if not one.does_nothing:
                    events.append(in_force(run, one, pending=True))
        return events


def _verification(settings: BranchingConfig) -> Verification:
    return Verification(
        top_k=settings.top_k,
        verify_steps=settings.verify_steps,
        rule=make_rule(settings.rule),
        workers=settings.workers,
        worth=settings.worth,
    )


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
