"""The loop on a run that is driven: trigger, rewind, draft, verify, collapse.

See `trainenv.agents.branching`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from shutil import rmtree
from typing import Any

import numpy as np

from trainenv.agents.branching.acceptance import AcceptanceStats, update_model
from trainenv.agents.branching.decision import (
    FEWEST,
    Draft,
    Skipped,
    Verified,
    first_lost,
    per_future,
    verification_of,
    within,
)
from trainenv.agents.branching.decision_records import (
    event_of,
    failures,
    forget_decisions,
    start_of,
)
from trainenv.agents.branching.problems import Drafting
from trainenv.agents.branching.rollback import Rollback, plan_rollback
from trainenv.agents.branching.standing_rules import back_off, enable_default_clipping, in_force
from trainenv.agents.branching.triggers import Triggers
from trainenv.agents.waste_budget import CostEstimate, WasteBudget
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.schema import BranchingConfig
from trainenv.interventions import ActionCodec
from trainenv.loop import Callback, CallbackResult
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import read_telemetry, telemetry_of
from trainenv.tools.error_text import describe_error
from trainenv.training.history import history_of
from trainenv.types import (
    Budget,
    Event,
    Intervention,
    Learner,
    Plan,
    Planner,
    Run,
    RunHistory,
    Snapshot,
    Telemetry,
    UserError,
    WorldModel,
)
from trainenv.verification import record
from trainenv.verification.rules import Better
from trainenv.verification.verify import Verification, adopt

_TRIALS = ("warmup", "checkpoint")  # decisions that no harm has called for
_HISTORY = 512  # steps: what a forecast looks at
_SHOWS = 4  # times as long a branch is trained where it must show that it is better


@dataclass(kw_only=True)
class Branching(Callback):
    """Steers a run whenever it is called for. A callback for `trainenv.loop.train`.

    Args:
        planner: drafts futures.
        model: forecasts them: a `WorldModel`, or a `Learner` that goes on learning from what is
            verified; None: the planner must do without.
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
            raise UserError(
                f"a planner needs a method plan(problem), found {self.planner!r:.80}; take planners.make('grid')"
            )
        if not (
            self.model is None or isinstance(self.model, Learner) or hasattr(self.model, "forecast")
        ):
            raise UserError(
                f"a model needs a method forecast, found {self.model!r:.80}; take worldmodel.load_pretrained()"
            )
        self._loaded: dict[str, Any] = {}
        self._stood: tuple[Run, int] | None = None  # the run and its step when it last responded
        self._forget()

    def _forget(self) -> None:
        """All that is remembered of a run."""
        self._unsaid = ""  # a fault that was met where nothing can be noted
        self._trial = False  # whether no harm has called for the decision that is being taken
        # FLOPs of the ledger that are on the purse, or the run's own
        self._number = 0
        self._settled = 0.0
        self._acceptance = AcceptanceStats()
        self._waste = WasteBudget(0.0)
        self._validation = math.nan  # the newest
        self._found = 1.0  # factor on the base learning rate that the start of the run has found
        self._pending: list[tuple[int, Intervention]] = []
        self._history: deque[Telemetry] = deque(maxlen=_HISTORY)
        self._remembered: deque[Snapshot] = deque()

    def cost_estimate(self, run: Run) -> CostEstimate:
        """What steering a run may cost at most, and what it can afford."""
        settings = self.config or run.config.branching
        verification = self.verification or verification_of(settings)
        model = self.model.model if isinstance(self.model, Learner) else self.model
        futures = Budget().futures if self.drafting.allow is None else FEWEST
        decision = self._price(run, verification, 1, verification.verify_steps) + (
            futures or 0
        ) * per_future(model)
        return CostEstimate.of(
            run,
            settings,
            width=verification.top_k,
            workers=verification.workers,
            decision=decision / run.flops_ahead,
        )

    # ── a callback ────────────────────────────────────────────────────────────────────────────────

    def on_train_begin(self, run: Run, folder: RunFolder, store: CheckpointStore, /) -> None:
        """See `Callback`."""
        state = self._loaded
        self._loaded = {}
        self._folder = folder.path
        self._store = store
        self._settings = self.config or run.config.branching
        self._verifying = self.verification or verification_of(self._settings)
        self._codec = ActionCodec(run.config.interventions)
        if not state and self._stood == (run, run.step):
            return  # it goes on in the same process, and knows all that it needs
        self._forget()
        self._triggers = Triggers(self._settings, run.step, run.config.schedule.warmup)
        if state:
            self._resume(state, folder, store)
        else:
            self._waste = WasteBudget.of(run, self._settings.max_waste)
            if (
                run.step and folder.telemetry.written
            ):  # steps taken before, by hand, are on no record
                self._read_history(folder, _HISTORY)
            for event in [
                *(enable_default_clipping(run) if self._settings.default_clip else []),
                *self._forkable(run),
            ]:
                folder.event(event)
            self._remember(run)

    def _forkable(self, run: Run) -> list[Event]:
        """Nothing is decided in a run that can't be forked, and that is said before it is trained."""
        try:
            run.check_forkable()
        except UserError as error:
            self._triggers.gave_up = True
            return [
                Event(
                    run.step,
                    "skipped",
                    {"number": 0, "why": "asked", "reason": str(error), "fault": True},
                )
            ]
        return []

    def next_block(self, run: Run, /) -> int:
        """See `Callback`. Harm is answered where it is seen, at the look itself."""
        monitor = run.config.monitor
        if not (monitor.enabled and monitor.probe_every and "harm" in self._settings.triggers):
            return int(monitor.block)
        every = int(monitor.probe_every)
        return (1 - run.step) % every or every

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """See `Callback`.

        Whatever a planner, a model, a rule or a full disk may raise: the run goes on.
        """
        self._history.extend(window)
        self._triggers.see(window)
        events = self._due(run)
        if self._unsaid:
            said = {"number": self._number, "why": "asked", "reason": self._unsaid, "fault": True}
            events.append(Event(run.step, "skipped", said))
            self._unsaid = ""
        at = run.step
        before = run.step - len(window)
        lost = run.diverged
        sound = math.isfinite(window[-1].loss)
        why = ""
        if lost:
            why = "diverged"
        elif (
            sound
        ):  # nothing can be forecast from a loss that is not finite: what is due waits for the next
            least = 4 * self._verifying.verify_steps
            busy = bool(self._pending)
            why = self._triggers.why(run, window, least=least, busy=busy)
        response = self._answered(run, why, events) if why else CallbackResult(events=events)
        if lost or sound:
            self._triggers.passed(at)
        rewound = any(event.kind == "rewind" for event in response.events)
        save = sound and self._worth_saving(run)
        # Just what is saved: a run that is gone on with has these to go back to.
        if rewound or save or (sound and self._store.due(before, run.step)):
            self._remember(run)
        self._stood = run, run.step
        return replace(response, save=save)

    def on_evaluate(self, step: int, loss: float, /) -> None:
        """See `Callback`."""
        self._triggers.on_evaluate(step, loss)
        self._validation = loss

    def state_dict(self) -> dict[str, Any]:
        """See `Callback`."""
        return {
            "number": self._number,
            "pending": [[step, record.changes(one)] for step, one in self._pending],
            "history": len(self._history),
            "remembered": [snapshot.step for snapshot in self._remembered],
            "alarms": self._triggers.state_dict(),
            "lessons": self._acceptance.state_dict(),
            "purse": self._waste.state_dict(),
            "validation": self._validation,
            "found": self._found,
            "learned": self._learned(),
        }

    def _learned(self) -> dict[str, Any] | None:
        """What the model has learned; where it can't say, a resumed run starts with what it knew at first."""
        if not isinstance(self.model, Learner):
            return None
        try:
            return dict(self.model.state_dict())
        except Exception as error:  # a save of the run does not hang on it
            self._unsaid = f"what the model has learned can't be saved: {describe_error(error)}"
            return None

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """See `Callback`; `begin` takes it on.

        Raises:
            KeyError: another callback remembers that.
        """
        if state and "purse" not in state:
            raise KeyError("purse")
        self._loaded = state

    def _resume(self, state: dict[str, Any], folder: RunFolder, store: CheckpointStore) -> None:
        self._number = state["number"]
        self._acceptance = AcceptanceStats(**state["lessons"])
        self._waste = WasteBudget(**state["purse"])
        self._pending = [(step, Intervention(**fields)) for step, fields in state["pending"]]
        self._triggers.load_state_dict(state["alarms"])
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
            self._history.extend(
                telemetry_of(read_telemetry(folder.path, kept_only=True).tail(steps))
            )

    def _remember(self, run: Run) -> None:
        """Keep a point to go back to."""
        if self._remembered and self._remembered[-1].step == run.step:
            self._remembered.pop()
        self._remembered.append(run.snapshot())
        if len(self._remembered) > min(self._settings.rewind_points, self._store.keep_last):
            self._remembered.popleft()

    def _worth_saving(self, run: Run) -> bool:
        """Whether this is a state to go back to, and the last one is some time ago."""
        if "harm" not in self._settings.triggers or self._triggers.rising is not None:
            return False
        last = self._remembered[-1].step if self._remembered else 0
        return run.step - last >= self._settings.save_every

    # ── a decision ────────────────────────────────────────────────────────────────────────────────

    def _answered(self, run: Run, why: str, events: list[Event]) -> CallbackResult:
        """A decision, or what kept it from being taken."""
        self._number = self._number + 1
        self._settled = run.ledger.total
        self._trial = why in _TRIALS
        try:
            found = self._go_round(run, events) if why == "harm" else self._decide(run, why, events)
        except Exception as error:
            found = Skipped(reason=describe_error(error), fault=True)
        if not isinstance(found, Skipped):
            return found
        self._throw_away(run, run.ledger.total - self._settled)
        said = {"number": self._number, "why": why, "reason": found.reason} | (
            {"fault": True} if found.fault else {}
        )
        events.append(Event(run.step, "skipped", said))
        if found.vain and (reason := self._triggers.in_vain()):
            events.append(Event(run.step, "gave_up", {"reason": reason}))
        if why == "diverged" and not run.diverged:
            events += back_off(run, self._codec)
        return CallbackResult(events=events)

    def _decide(self, run: Run, why: str, events: list[Event]) -> CallbackResult | Skipped:
        at = run.step
        harm = self._triggers.harm
        lost = why == "diverged"
        ready = self._triggers.range_test.draft(at) if why == "warmup" else None
        alarm = self._triggers.answered(at, lost=lost)
        if alarm is not None:
            events += self._go_back(
                run, min(alarm, first_lost(self._history, alarm)), harm, lost=lost
            )
            if lost and run.step == at:
                return Skipped(reason=f"the run has diverged, and {self._no_way_back(run)}")
        began = run.step
        self._settled = run.ledger.total
        found = self._verified(
            run, {"number": self._number, "why": why, "at": at, "step": began, "harm": harm}, ready
        )
        if isinstance(found, Skipped):
            return found
        kept = self._commit(run, found)
        if not kept:  # the control has diverged, and nothing held up
            events += [*self._go_back(run, began, harm, lost=True), *back_off(run, self._codec)]
        self._history.extend(kept)
        self._triggers.see(kept)
        try:
            events += self._collapsed(run, why, began, found)
        except (
            Exception
        ) as error:  # the branch has become the run, whatever could not be noted or learned of it
            said = {
                "number": self._number,
                "why": why,
                "reason": describe_error(error),
                "fault": True,
            }
            events.append(Event(run.step, "skipped", said))
        return CallbackResult(events=events, kept=kept)

    def _verified(self, run: Run, when: dict[str, Any], ready: Plan | None) -> Draft | Skipped:
        """Draft, verify, put on record."""
        verifying, steps = self._asked(ready)
        least = self._price(run, verifying, 1, steps)
        left = self._left_for(run)
        if least > left:
            return Skipped(reason=self._no_budget(run, least))
        if self._trial and not self._waste.spares(run):
            return Skipped(
                reason="no budget is left: trials have had their half of it, and the rest is kept for harm"
            )
        history = self._known(run)
        plan = ready or self._draft(run, history, left - least)
        left = self._left_for(run)

        def price(branches: int) -> float:
            flops = self._price(run, verifying, branches, steps)
            return flops if flops <= left else math.inf

        width = self._waste.widest(self._acceptance.branches(verifying.top_k), price)
        if plan is None or not width:
            return Skipped(reason=self._no_budget(run, least))
        verification = replace(verifying, top_k=width, width=self._acceptance.width)
        if not verification.chosen(plan):
            return Skipped(
                reason="; ".join(plan.faults) or "no draft promises enough", fault=bool(plan.faults)
            )
        rollouts = verification.rollouts(run, decision_steps=history.decision_steps, limit=left)
        where = record.folder_of(self._folder, run.step, self._number)
        start = start_of(run, where, replayable=self._settings.replayable)
        verdict = verification.verify(
            rollouts, plan, horizon=4 * history.decision_steps, steps=steps
        )
        if error := verdict.control.outcome.error:
            rmtree(where, ignore_errors=True)
            reason = (
                f"doing nothing could not be trained to compare with, so nothing is done: {error}"
            )
            return Skipped(reason=reason, fault=True, vain=True)
        told = record.record_of(verdict, plan, verification) | when
        told |= {
            "start": start,
            "decision_steps": history.decision_steps,
            "end": {"fingerprint": ""},
        }
        record.write(where, told)  # what can't be put on record is not done
        return Draft(
            rollouts=rollouts, verdict=verdict, where=where, told=told, plan=plan, history=history
        )

    def _commit(self, run: Run, found: Verified) -> tuple[Telemetry, ...]:
        """The run becomes what was accepted; where that fails it is as it was."""
        before = run.snapshot()
        try:
            kept = adopt(found.rollouts, found.verdict)
        except BaseException:
            run.restore(before)
            raise
        self._throw_away(run, found.verdict.wasted)
        self._settled = run.ledger.total
        return kept

    @property
    def _highest(self) -> float:
        """What drafts may raise the learning rate to, as a factor on the base rate: they see a stretch, not the whole run."""
        return 0.0 if self._triggers.careful else self._settings.max_lr_factor * self._found

    def _asked(self, ready: Plan | None) -> tuple[Verification, int]:
        """How a draft is verified, and for how many steps."""
        usual = self._verifying
        if (
            ready is not None
            # no model foresees it, so real steps must show that it is better: more of them, of one
            # branch
        ):
            return replace(usual, top_k=1, rule=Better(), worth=0.0), _SHOWS * usual.verify_steps
        return usual, self._acceptance.steps(usual.verify_steps)

    def _known(self, run: Run) -> RunHistory:
        """What is known now."""
        # The newest validation will do: 2 % off it, forecasts of changes differ by 1e-4, and most
        # drafts promise nothing.
        return history_of(
            run, list(self._history), horizon=self._settings.horizon, validation=self._validation
        )

    def _draft(self, run: Run, history: RunHistory, flops: float) -> Plan | None:
        """What the planner makes of it for so many FLOPs at most; None: that is too little to draft for."""
        model = self.model.model if isinstance(self.model, Learner) else self.model
        generator = np.random.default_rng([run.config.seed, run.step, self._number])
        drafting = replace(self.drafting, parts=self._settings.parts, highest=self._highest)
        problem = drafting.problem(run, history, self._codec, model, generator)
        problem = replace(problem, budget=within(problem.budget, flops, per_future(model)))
        if problem.budget.futures == 0:
            return None
        plan = self.planner.plan(problem)
        if not isinstance(plan, Plan):
            raise UserError(f"a planner must return a Plan, found {plan!r:.80}")
        spent = plan.cost.futures * per_future(problem.model)
        run.ledger.charge("plan", spent)
        self._throw_away(run, spent)
        self._settled = run.ledger.total
        return plan

    def _price(self, run: Run, verifying: Verification, branches: int, steps: int) -> float:
        """FLOPs that a verification throws away at most, where all is lost the control too."""
        return (
            verifying.thrown_away(run, branches, steps)
            + steps * run.flops_ahead
            + run.flops_per_evaluation
        )

    def _left_for(self, run: Run) -> float:
        """FLOPs that may be thrown away, and that the run has."""
        return min(
            self._waste.left, (run.horizon.end - run.step) * run.flops_ahead - self._waste.owed
        )

    def _no_budget(self, run: Run, flops: float) -> str:
        """Why something that may throw away so many FLOPs is not done."""
        worth = flops / run.flops_ahead
        left = self._waste.left / run.flops_ahead
        return f"no budget is left: {worth:.0f} steps' worth may be thrown away, of {left:.0f}"

    def _throw_away(self, run: Run, flops: float) -> None:
        self._waste.throw_away(flops, trial=self._trial)
        self._waste.owe(run, flops)

    def _collapsed(self, run: Run, why: str, began: int, found: Draft) -> list[Event]:
        """The run has become one of its futures: what follows from that, and is learned from it."""
        verdict = found.verdict
        steps = found.history.decision_steps
        became = verdict.winner or verdict.control
        self._validation = math.nan if became.lost else became.outcome.validation[-1]
        self._became(run, found)
        if (
            verdict.winner is not None
            # its later parts come due a decision apart; those within the branch are in force
            # already
        ):
            later = enumerate(verdict.winner.interventions)
            self._pending = [
                (began + k * steps, one) for k, one in later if k * steps >= verdict.steps
            ]
        faults = [*found.plan.faults, *failures(verdict)]
        if why == "warmup":  # it says nothing of the planner's drafts
            self._found = run.lr_scale
        else:
            self._acceptance.learn(verdict)
        if isinstance(self.model, Learner):
            try:
                flops = update_model(
                    self.model,
                    f"{run.config.name}-{run.config.seed}",
                    found.history,
                    verdict,
                    self._waste.left,
                )
            except (
                Exception
            ) as error:  # the model is as it was, or near it; the run does not hang on it
                faults.append(f"the model did not learn: {describe_error(error)}")
            else:
                run.ledger.charge("model", flops)
                self._throw_away(run, flops)
        where = str(found.where.relative_to(self._folder))
        events = [
            event_of(began, verdict, {"number": self._number, "why": why, "folder": where}, faults),
            *self._due(run),
        ]
        if reason := self._triggers.judged(accepted=verdict.accepted is not None):
            events.append(Event(run.step, "gave_up", {"reason": reason}))
        return events

    def _became(self, run: Run, found: Verified) -> None:
        """Put on record what the run has become."""
        with suppress(OSError):  # it is on record but for this
            record.write(found.where, found.told | {"end": {"fingerprint": run.fingerprint()}})

    # ── harm that has begun ───────────────────────────────────────────────────────────────────────

    def _go_round(self, run: Run, events: list[Event]) -> CallbackResult | Skipped:
        """Try another way to where the run is, and take it if less harm lies on it."""
        at = run.step
        harm = self._triggers.harm
        what = {"number": self._number, "why": "harm"}
        try:
            way = plan_rollback(run, self._triggers.met(), self._remembered, self._history)
        except UserError as error:  # there is none
            return Skipped(reason=str(error))
        if way.price(run) > self._left_for(run):
            return Skipped(reason=self._no_budget(run, way.price(run)))
        found = self._tried(run, way, what | {"at": at, "harm": harm})
        verdict = found.verdict
        kept = self._commit(run, found)
        if verdict.winner is not None:
            events.append(self._left(at, way.start.snapshot(), way.steps * run.flops_ahead, harm))
            self._triggers.gone_round(at)
            self._history.extend(kept)
            self._triggers.see(kept)
            self._validation = verdict.winner.outcome.validation[-1]
        self._became(run, found)
        where = str(found.where.relative_to(self._folder))
        events.append(
            event_of(way.start.step, verdict, what | {"folder": where}, failures(verdict))
        )
        if verdict.winner is not None:
            events.append(in_force(run, verdict.winner.interventions[-1], pending=True))
        return CallbackResult(events=events, kept=kept)

    def _tried(self, run: Run, way: Rollback, when: dict[str, Any]) -> Verified:
        """A detour that was trained, judged and put on record."""
        where = record.folder_of(self._folder, way.start.step, self._number)
        start = start_of(way.start, where, replayable=self._settings.replayable)
        verification = way.verification(self._verifying)
        rollouts, verdict = way.verified(run, verification)
        told = record.record_of(verdict, way.plan, verification, control="recorded") | when
        told |= {
            "step": way.start.step,
            "start": start,
            "decision_steps": way.steps,
            "end": {"fingerprint": ""},
        }
        record.write(where, told)
        return Verified(rollouts=rollouts, verdict=verdict, where=where, told=told)

    # ── what is done to the run ───────────────────────────────────────────────────────────────────

    def _go_back(self, run: Run, alarm: int, harm: float, *, lost: bool) -> list[Event]:
        """Rewind to before the alarm where a snapshot and the purse allow it; a run that is lost also to the newest snapshot."""
        behind = [s for s in self._remembered if s.step <= alarm - self._settings.rewind][-1:]
        behind += list(self._remembered)[-1:] if lost else []
        for snapshot in behind:
            at = run.step
            flops = (run.step - snapshot.step) * run.flops_ahead
            if snapshot.step < at and flops <= self._waste.left:
                run.rewind(snapshot)
                return [self._left(at, snapshot, flops, harm)]
        return []

    def _no_way_back(self, run: Run) -> str:
        """Why a run that has diverged is not taken back, and what to do."""
        if not self._remembered:
            return "no state of it is there to go back to"
        away = run.step - self._remembered[-1].step
        left = self._waste.left / run.flops_ahead
        return (
            f"going back throws away {away} steps, of {left:.0f} that still may be: "
            "resume from an earlier checkpoint with a lower learning rate, or allow more by branching.max_waste"
        )

    def _left(self, at: int, snapshot: Snapshot, flops: float, harm: float) -> Event:
        """The run has gone back from step `at` to a snapshot; that has taken the FLOPs off its budget."""
        start = snapshot.step
        self._waste.throw_away(flops)
        self._remembered = deque(s for s in self._remembered if s.step <= start)
        self._history = deque((t for t in self._history if t.step <= start), maxlen=_HISTORY)
        self._validation = math.nan
        self._pending = [(step, one) for step, one in self._pending if step <= start]
        return Event(
            at, "rewind", {"to": start, "lr_scale": snapshot.state["lr_scale"], "harm": harm}
        )

    def _due(self, run: Run) -> list[Event]:
        """Put in force what an accepted sequence has left for now."""
        due = [one for step, one in self._pending if step <= run.step]
        due = [
            one for one in due if one.lr_scale <= 1 or run.lr_scale * one.lr_scale <= self._highest
        ]
        self._pending = [(step, one) for step, one in self._pending if step > run.step]
        events = []
        for one in due:
            with suppress(UserError):  # out of bounds by now
                if not one.does_nothing:
                    events.append(in_force(run, one, pending=True))
        return events
