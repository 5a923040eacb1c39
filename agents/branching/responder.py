"""The loop on a run that is driven: trigger, rewind, draft, verify, collapse. See `agents.branching`."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.branching.drafting import Drafting
from agents.branching.purse import Purse, Statement
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config import BranchingConfig
from trainenv.driving import Responder, Response
from trainenv.history import history_of
from trainenv.interventions import ActionCodec
from trainenv.monitor.regression import RegressionTrigger
from trainenv.records.decisions import NAME
from trainenv.records.folder import RunFolder
from trainenv.records.parquet import read_telemetry, telemetry_of
from trainenv.run import TrainingRun
from trainenv.types import (
    LOOKS,
    Event,
    Intervention,
    Learner,
    Plan,
    Planner,
    Rollout,
    RunHistory,
    Snapshot,
    Telemetry,
    UserError,
    Verdict,
    WorldModel,
)
from trainenv.wrappers import record
from trainenv.wrappers.rules import make as make_rule
from trainenv.wrappers.verification import Verification, adopt

_HISTORY = 512  # steps: what a forecast looks at
_CALM, _LAST = 0.7, 0.03  # decay of the acceptance rate; share of the budget at its end in which nothing is decided
_EMERGENCY = Intervention(clip="zclip")
_MISSED, _RATE = 0.1, 0.5  # share of branches that may lie outside their intervals; how fast the width follows


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
        self._loaded: dict[str, Any] = {}
        self._number = self._in_row = self._quiet_until = self._next = 0
        self._accepted_rate, self._gave_up, self._width = 0.5, False, 1.0
        self._pending: list[tuple[int, Intervention]] = []
        self._history: deque[Telemetry] = deque(maxlen=_HISTORY)
        self._remembered: deque[Snapshot] = deque()
        self._purse = Purse(0.0)
        self._regression = RegressionTrigger()
        self._regressed = ""
        self._stood: tuple[TrainingRun, int] | None = None  # the run and its step when it last responded
        self._careful = False  # the run has been hurt
        self._alarm: list[float] = []  # step and worst harm of an alarm whose harm may yet heal by itself

    def statement(self, run: TrainingRun) -> Statement:
        """What steering a run may cost at most."""
        settings = self.config or run.config.branching
        weights = sum(p.numel() * p.element_size() for p in run.model.parameters())
        state = 3 * weights  # with both moments; a fork has gradients beside it
        width = self.verification.top_k if self.verification else settings.top_k
        forks = (width + 1) * (2 * state + weights)  # and what each has come to
        budget = max(run.config.steps, run.horizon.end)
        decisions = budget // settings.every + budget // max(1, settings.quiet)
        return Statement(
            steps=round(settings.share * budget),
            memory=forks + (settings.keep + 1) * state,
            disk=decisions * state * settings.replayable,
        )

    # ── a responder ─────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, run: TrainingRun, folder: RunFolder, store: CheckpointStore, /) -> None:
        """See `Responder`."""
        state, self._loaded = self._loaded, {}
        goes_on = not state and self._stood == (run, run.step)  # in the same process: it knows all that it needs
        if not goes_on:
            self.__post_init__()
        self._folder, self._store = folder.path, store
        self._settings = self.config or run.config.branching
        self._verifying = self.verification or _verification(self._settings)
        self._codec = ActionCodec(run.config.interventions)
        if state:
            self._resume(state, folder, store)
        elif not goes_on:
            self._purse = Purse.of(run, self._settings.share)
            self._next = (run.step // self._settings.every + 1) * self._settings.every
            self._read_history(folder, _HISTORY if run.step else 0)
            self._remember(run)

    def respond(self, run: TrainingRun, window: Sequence[Telemetry], /) -> Response:
        """See `Responder`."""
        self._history.extend(window)
        self._regressed = self._regression.windowed(window) or self._regressed
        # A run that has been hurt may be hurt again, by what no model of its present foresees; a higher rate makes it worse.
        self._careful = self._careful or self._regression.harm >= self._settings.harm
        events = [*self._insured(run), *self._due(run)]
        at, before, why = run.step, run.step - len(window), self._why(run, window)
        response = self._decide(run, why, window, events) if why else Response(events=events)
        if at >= self._next:
            self._next = (at // self._settings.every + self._patient()) * self._settings.every
        rewound = any(event.kind == "rewind" for event in response.events)
        # Just what is saved: a run that is gone on with has these to go back to.
        if rewound or (self._store.due(before, run.step) and math.isfinite(window[-1].loss)):
            self._remember(run)
        self._stood = run, run.step
        return response

    def validated(self, step: int, loss: float, /) -> None:
        """See `Responder`."""
        self._regressed = self._regression.validated(step, loss) or self._regressed

    def state_dict(self) -> dict[str, Any]:
        """See `Responder`."""
        return {
            "number": self._number,
            "in_row": self._in_row,
            "quiet_until": self._quiet_until,
            "next": self._next,
            "accepted_rate": self._accepted_rate,
            "gave_up": self._gave_up,
            "width": self._width,
            "regressed": self._regressed,
            "alarm": self._alarm,
            "careful": self._careful,
            "pending": [[step, record.changes(one)] for step, one in self._pending],
            "history": len(self._history),
            "remembered": [snapshot.step for snapshot in self._remembered],
            "purse": self._purse.state_dict(),
            "regression": self._regression.state_dict(),
            "learned": self.model.state_dict() if isinstance(self.model, Learner) else None,
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """See `Responder`; `begin` takes it on."""
        self._loaded = state

    def _resume(self, state: dict[str, Any], folder: RunFolder, store: CheckpointStore) -> None:
        self._number, self._in_row, self._next = state["number"], state["in_row"], state["next"]
        self._quiet_until, self._accepted_rate = state["quiet_until"], state["accepted_rate"]
        self._gave_up, self._width, self._regressed = state["gave_up"], state["width"], state["regressed"]
        self._pending = [(step, Intervention(**fields)) for step, fields in state["pending"]]
        self._purse, self._alarm = Purse(**state["purse"]), state["alarm"]
        self._careful = state["careful"]
        self._regression.load_state_dict(state["regression"])
        self._read_history(folder, state["history"])
        _forget_decisions(folder.path, self._number)
        there = set(store.steps())
        self._remembered.extend(store.load(step) for step in state["remembered"] if step in there)
        if isinstance(self.model, Learner) and state["learned"] is not None:
            self.model.load_state_dict(state["learned"])

    def _read_history(self, folder: RunFolder, steps: int) -> None:
        if steps:
            self._history.extend(telemetry_of(read_telemetry(folder.path, kept_only=True).tail(steps)))

    # ── when ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _why(self, run: TrainingRun, window: Sequence[Telemetry]) -> str:
        """What calls for a decision now; empty: nothing."""
        triggers, left = self._settings.triggers, run.horizon.end - run.step
        if not math.isfinite(window[-1].loss):
            return "fired"
        harmed = self._harmed(run, window)
        due = run.step >= self._next
        if self._gave_up or left <= max(4 * self._verifying.verify_steps, _LAST * run.config.steps):
            return ""
        awake = run.step >= self._quiet_until
        if "fired" in triggers and (harmed or (awake and any(t.reading.fired for t in window))):
            return "fired"
        if "regression" in triggers and awake and self._regressed:
            return "regression"
        return "checkpoint" if "checkpoint" in triggers and due and not self._pending else ""

    def _harmed(self, run: TrainingRun, window: Sequence[Telemetry]) -> bool:
        """Whether an alarm has done harm that does not heal by itself: half of the worst is still there `quiet` steps later.

        Most spikes heal sooner than the steps that going back throws away would be trained again.
        """
        harm = self._regression.harm
        self._alarmed(window)
        if not self._alarm:
            return False
        self._alarm[1] = max(self._alarm[1], 0.0 if math.isnan(harm) else harm)
        if run.step < self._alarm[0] + self._settings.quiet:
            return False
        if harm >= max(self._settings.harm, 0.5 * self._alarm[1]):
            return True
        self._alarm = []
        return False

    def _alarmed(self, window: Sequence[Telemetry]) -> None:
        fired = next((t.step for t in window if t.reading.fired), None)
        if fired is not None and not self._alarm:
            self._alarm = [fired, 0.0]

    def _patient(self) -> int:
        """Intervals between decisions: twice as long once drafts keep failing."""
        return 1 if self._in_row < self._settings.patience else 2

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, run: TrainingRun, why: str, window: Sequence[Telemetry], events: list[Event]) -> Response:
        at, harm = run.step, self._regression.harm
        lost = not math.isfinite(window[-1].loss)
        self._number, self._regressed = self._number + 1, ""
        self._quiet_until = at + self._settings.quiet
        healing = not self._alarm or at < self._alarm[0] + self._settings.quiet
        if lost or (not healing and harm >= self._settings.harm):
            alarm, self._alarm = int(self._alarm[0]) if self._alarm else at, []
            events += self._go_back(run, alarm, harm, lost=lost)
            if lost and run.step == at:
                return Response(events=events)  # there is nothing to go back to: the run has diverged
        reason = "" if math.isfinite(self._price(run, 1, self._depth(run))) else "no budget is left"
        spent = run.ledger.total
        try:  # whatever a planner, a model, a rule or a full disk may raise: the run is as it was, and goes on
            if not reason:
                history, plan = self._draft(run)
                verification, steps = self._affordable(run), self._depth(run)
                if not verification.chosen(plan):
                    reason = "; ".join(plan.faults) or "no draft promises enough"
            if not reason:
                spent = run.ledger.total
                decision_steps = history.decision_steps
                rollouts = verification.rollouts(run, decision_steps=decision_steps, validation=history.validation)
                start = self._start(run)
                verdict = verification.verify(rollouts, plan, horizon=4 * decision_steps, steps=steps)
                began = run.step
                told = record.record_of(verdict, plan, verification)
                told |= {"number": self._number, "why": why, "at": at, "step": began, "harm": harm, "start": start}
                told |= {"decision_steps": decision_steps, "end": {"fingerprint": ""}}
                record.write(self._where, told)  # what can't be put on record is not done
        except Exception as error:
            self._throw_away(run, run.ledger.total - spent)
            reason = _told(error)
        if reason:
            events.append(Event(run.step, "skipped", {"number": self._number, "why": why, "reason": reason}))
            return Response(events=[*events, *self._calm(run, lost=lost)])
        kept = adopt(rollouts, verdict)
        self._throw_away(run, verdict.wasted)
        if not kept:  # the control is lost, and nothing held up
            events += self._go_back(run, began, harm, lost=True) + self._calm(run, lost=True)
        self._history.extend(kept)
        self._alarmed(kept)
        self._regressed = self._regression.windowed(kept) or self._regressed
        with suppress(OSError):  # it is on record but for this
            record.write(self._where, told | {"end": {"fingerprint": run.fingerprint()}})
        self._plan_ahead(began, verdict, decision_steps)
        faults = [*plan.faults, *self._learn(run, history, verdict)]
        events.append(self._event(began, why, verdict, faults))
        return Response(events=[*events, *self._due(run), *self._count(run, verdict)], kept=kept)

    def _draft(self, run: TrainingRun) -> tuple[RunHistory, Plan]:
        """What is known now, and what the planner makes of it."""
        validation = run.evaluate()
        self._throw_away(run, run.flops_per_evaluation)
        history = history_of(run, list(self._history), horizon=self._settings.horizon, validation=validation)
        model = self.model.model if isinstance(self.model, Learner) else self.model
        generator = np.random.default_rng([run.config.seed, run.step, self._number])
        drafting = replace(self.drafting, parts=self._settings.parts, raises=not self._careful)
        plan = self.planner.plan(drafting.problem(run, history, self._codec, model, generator))
        if not isinstance(plan, Plan):
            raise UserError(f"a planner must return a Plan, found {plan!r:.80}")
        flops = plan.cost.futures * float(getattr(model, "flops_per_future", 0.0))
        run.ledger.charge("plan", flops)
        self._purse.owe(run, flops)
        return history, plan

    def _affordable(self, run: TrainingRun) -> Verification:
        """The verification with as many branches as the acceptance rate asks for and the purse allows."""
        wanted = max(1, round(self._verifying.top_k * (1 - self._accepted_rate)))
        steps = self._depth(run)
        width = self._purse.widest(wanted, lambda k: self._price(run, k, steps))
        worth = self._verifying.worth if width else math.inf
        return replace(self._verifying, top_k=max(width, 1), worth=worth, width=self._width)

    def _price(self, run: TrainingRun, branches: int, steps: int) -> float:
        """FLOPs that a decision throws away at most, where all is lost the control too; inf: more than there are."""
        control, evaluation = steps * run.flops_ahead, run.flops_per_evaluation
        flops = self._verifying.thrown_away(run, branches, steps) + control + evaluation
        left = (run.horizon.end - run.step) * run.flops_ahead - self._purse.owed
        return flops if flops <= min(left, self._purse.left) else math.inf

    def _depth(self, run: TrainingRun) -> int:
        """Steps of a branch: fewer where drafts are mostly accepted."""
        return max(1, round(self._verifying.verify_steps * (1.25 - 0.5 * self._accepted_rate)))

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
        self._purse.throw_away(flops)  # the rewind has taken it off the budget
        self._remembered = deque(s for s in self._remembered if s.step <= snapshot.step)
        self._history = deque((t for t in self._history if t.step <= snapshot.step), maxlen=_HISTORY)
        self._pending = [(step, one) for step, one in self._pending if step <= snapshot.step]
        return [Event(at, "rewind", {"to": snapshot.step, "lr_scale": run.lr_scale, "harm": harm})]

    def _insured(self, run: TrainingRun) -> list[Event]:
        """Clip where nothing does: it costs nothing that could be measured, and no model of the present foresees a bad batch."""
        chosen = any(one.clip for _, one in run.applied)  # by whoever knows better
        if not self._settings.insure or chosen or run.clip != "none":
            return []
        insurance = Intervention(clip="zclip")
        run.apply(insurance)
        return [Event(run.step, "intervention", record.changes(insurance))]

    def _calm(self, run: TrainingRun, *, lost: bool) -> list[Event]:
        """After a loss that was lost, with no draft to go by: what people do by hand, a lower learning rate and clipping."""
        if not lost:
            return []
        masks = self._codec.masks(run)
        scales = [s for s, legal in zip(run.config.interventions.lr_scales, masks[0]) if legal]
        wanted = replace(_EMERGENCY, lr_scale=min(scales), clip=None if run.clip == "zclip" else "zclip")
        run.apply(wanted)
        return [Event(run.step, "intervention", record.changes(wanted))]

    def _throw_away(self, run: TrainingRun, flops: float) -> None:
        self._purse.throw_away(flops)
        self._purse.owe(run, flops)

    # ── what follows from it ────────────────────────────────────────────────────────────────────────────────────────

    def _due(self, run: TrainingRun) -> list[Event]:
        """Put in force what an accepted sequence has left for now."""
        due = [one for step, one in self._pending if step <= run.step and not (self._careful and one.lr_scale > 1)]
        self._pending = [(step, one) for step, one in self._pending if step > run.step]
        events = []
        for one in due:
            try:
                run.apply(one)
            except UserError:  # out of bounds by now
                continue
            if not one.does_nothing:
                events.append(Event(run.step, "intervention", {**record.changes(one), "pending": True}))
        return events

    def _plan_ahead(self, began: int, verdict: Verdict, decision_steps: int) -> None:
        """Later parts of the accepted sequence come due a decision apart; those within the branch are in force already."""
        if verdict.winner is not None:
            later = enumerate(verdict.winner.interventions)
            self._pending = [(began + k * decision_steps, one) for k, one in later if k * decision_steps >= verdict.steps]

    def _count(self, run: TrainingRun, verdict: Verdict) -> list[Event]:
        """The acceptance rate; and giving up, once drafts keep failing."""
        accepted = verdict.accepted is not None
        self._accepted_rate = _CALM * self._accepted_rate + (1 - _CALM) * accepted
        self._in_row = 0 if accepted else self._in_row + 1
        if self._gave_up or self._in_row < 2 * self._settings.patience:
            return []
        self._gave_up = True
        return [Event(run.step, "gave_up", {"reason": f"{self._in_row} drafts in a row were not accepted"})]

    def _learn(self, run: TrainingRun, history: RunHistory, verdict: Verdict) -> list[str]:
        """Learn how wide intervals must be; hand what was measured to a model that learns, where it has a place for it.

        Returns what went wrong. The width follows the misses (adaptive conformal inference, Gibbs and Candès 2021, on its
        logarithm); the branches of one verification share their fate, so together they weigh as one.
        """
        missed = [not b.expected[0] <= b.delta <= b.expected[2] for b in verdict.branches[1:] if b.expected and not b.lost]
        if missed and not verdict.control.lost:
            self._width *= math.exp(_RATE * (sum(missed) / len(missed) - _MISSED))
        if not isinstance(self.model, Learner) or verdict.control.lost:
            return []
        looks = 4 * history.decision_steps / LOOKS
        near = abs(verdict.steps - looks) <= 0.25 * looks
        rollouts = [
            Rollout(
                run=f"{run.config.name}-{run.config.seed}",
                history=history,
                interventions=branch.interventions,
                looks=(branch.delta,) if near else (),
                annealed=branch.annealed_delta,
            )
            for branch in verdict.branches[1:]
            if not branch.lost and ((near and math.isfinite(branch.delta)) or math.isfinite(branch.annealed_delta))
        ]
        if not rollouts:
            return []
        before, fault = float(getattr(self.model, "flops", 0.0)), []
        try:
            self.model.learn(rollouts)
        except Exception as error:  # it is as it was, or near it; the run does not hang on it
            fault = [f"the model did not learn: {_told(error)}"]
        flops = float(getattr(self.model, "flops", 0.0)) - before
        run.ledger.charge("model", flops)
        self._purse.owe(run, flops)
        return fault

    # ── on record ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _remember(self, run: TrainingRun) -> None:
        if self._remembered and self._remembered[-1].step == run.step:
            self._remembered.pop()
        self._remembered.append(run.snapshot())
        if len(self._remembered) > min(self._settings.keep, self._store.keep_last):
            self._remembered.popleft()

    def _start(self, run: TrainingRun) -> dict[str, Any]:
        """What a replay starts from."""
        self._where = record.folder_of(self._folder, run.step, self._number)
        start = {"fingerprint": run.fingerprint(), "flagged": list(run.flagged), "checkpoint": None}
        if self._settings.replayable:
            with CheckpointStore(self._where, keep_last=1, moments="exact") as store:
                store.save(run.snapshot(), wait=True)
            start["checkpoint"] = "."
        return start

    def _event(self, began: int, why: str, verdict: Verdict, faults: Sequence[str]) -> Event:
        winner = verdict.winner
        detail = {
            "number": self._number,
            "why": why,
            "folder": str(self._where.relative_to(self._folder)),
            "accepted": winner is not None,
            "interventions": [] if winner is None else [record.changes(one) for one in winner.interventions],
            "reason": verdict.reason,
        } | ({"faults": list(faults)} if faults else {})
        return Event(began, "decision", detail)


def _verification(settings: BranchingConfig) -> Verification:
    rule, workers = make_rule(settings.rule), settings.workers
    return Verification(top_k=settings.top_k, verify_steps=settings.verify_steps, rule=rule, workers=workers)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _forget_decisions(folder: Path, number: int) -> None:
    """Take off record the decisions after one, of a run that was killed and now goes on from before them."""
    for path in folder.glob(f"{record.FOLDER}/*/{NAME}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if int(json.loads(path.read_text(encoding="utf-8"))["number"]) > number:
                path.unlink()
