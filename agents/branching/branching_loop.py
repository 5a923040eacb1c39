"""The branching loop: check_triggers → rewind → plan → verify → commit.

    check_triggers   an alarm, harm, a worse trend, the warm-up or a checkpoint asks for a decision
    rewind           if harm lasts, the run goes back to before the alarm
    plan             a planner ranks candidate interventions
    verify           the best of them are trained for a few real steps, next to the control
    commit           the run becomes the accepted branch, or else the control

A plan to the end of the run is followed instead of verified: its first part takes effect at once,
and the decision ends (`trainenv.agents.branching.follow`).

Each of them is a method of `Branching`; `on_block_end` calls them in this order. If a planner, a
model or a rule fails, or the disk is full, the decision ends and the run continues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trainenv.agents.branching.after_commit import after_draft, after_rollback
from trainenv.agents.branching.blind_spots import blind_spots
from trainenv.agents.branching.decision import Decision, Proposal, Skipped
from trainenv.agents.branching.decision_records import DecisionRecord, Verified
from trainenv.agents.branching.drafts import Drafter, price_of_branches
from trainenv.agents.branching.follow import Followed, follow
from trainenv.agents.branching.loop_state import LoopState
from trainenv.agents.branching.problems import (
    FEWEST,
    PlanningOptions,
    flops_per_future,
    world_model_of,
)
from trainenv.agents.branching.rewind_points import RewindPoint
from trainenv.agents.waste_budget import CostEstimate
from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.schema import BranchingConfig, BranchingSettings
from trainenv.loop import Callback, CallbackResult
from trainenv.records.run_folder import RunFolder
from trainenv.tools.error_text import describe_error
from trainenv.types import Budget, Event, Learner, Planner, Run, Telemetry, UserError, WorldModel
from trainenv.verification.rules import make as make_rule
from trainenv.verification.verify import Verification


@dataclass(kw_only=True)
class Branching(Callback):
    """Callback of `trainenv.train` that steers a run.

    Args:
        planner: Planner that ranks candidate interventions.
        model: World model that forecasts them, or a `Learner` that also learns from verified
            branches; None for a planner that needs none.
        config: Settings of the loop; None for those of the run's configuration.
        verification: Settings of the verification; None to make them from the configuration.
        planning: Settings of the planning problem.
        flags: Arguments of `trainenv run` that make an equal callback, for the record; empty if
            none do.

    Raises:
        UserError: The planner or the model lacks its method.
    """

    planner: Planner
    model: WorldModel | Learner | None = None
    config: BranchingConfig | None = None
    verification: Verification | None = None
    planning: PlanningOptions = field(default_factory=PlanningOptions)
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.planner, Planner):
            raise UserError(
                f"a planner needs a method plan(problem), found {self.planner!r:.80}; "
                "take planners.make('grid')"
            )
        forecasts = isinstance(self.model, Learner) or hasattr(self.model, "forecast")
        if self.model is not None and not forecasts:
            raise UserError(
                f"a model needs a method forecast, found {self.model!r:.80}; "
                "take worldmodel.load_pretrained()"
            )
        self._state: LoopState
        self._loaded: dict[str, Any] = {}  # until the run begins
        self._left_at: tuple[Run, int] | None = None  # the run and its step after the last block

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Take a decision if the last steps call for one. See `Callback`."""
        state = self._state
        state.observe(window)
        events = [*state.apply_due(run), *state.report_fault(run)]
        kept: tuple[Telemetry, ...] = ()
        at = run.step
        sound = math.isfinite(window[-1].loss)
        usable = sound or run.diverged
        decision = self.check_triggers(run, window)
        if decision is not None:
            try:
                point = self.rewind(run, decision)
                proposal = self.plan(run, point, decision)
                if isinstance(proposal, Followed):
                    decision.events.append(follow(run, proposal, decision, state))
                else:
                    verified = self.verify(run, proposal, decision)
                    kept = self.commit(run, verified, decision)
            except Exception as error:  # the run continues, whatever failed
                state.skip(run, decision, Skipped.because_of(error))
            events += [*decision.events, *state.report_recurrence(run)]
        if usable:
            state.triggers.schedule_checkpoint(at)
        rewound = any(event.kind == "rewind" for event in events)
        save = state.remember_if_saved(run, at - len(window), sound=sound, rewound=rewound)
        self._left_at = (run, run.step)
        return CallbackResult(events=events, kept=kept, save=save)

    def check_triggers(self, run: Run, window: Sequence[Telemetry]) -> Decision | None:
        """Return the decision that the last steps call for, if any.

        Nothing can be forecast from a non-finite loss, so such a block calls for none.
        """
        state = self._state
        trigger = ""
        if run.diverged and not state.recurrence.looks_structural:
            trigger = "diverged"
        elif math.isfinite(window[-1].loss):
            least = 4 * self._verification.verify_steps
            trigger = state.triggers.reason(run, window, least=least, busy=bool(state.pending))
        if not trigger:
            return None
        state.number += 1
        return Decision(
            number=state.number,
            trigger=trigger,
            at=run.step,
            harm=state.triggers.harm,
            accounted=run.ledger.total,
        )

    def rewind(self, run: Run, decision: Decision) -> RewindPoint:
        """Go back to before an alarm whose harm lasts, and return the state to branch from.

        Harm that has just been seen is answered by a test instead: the branches start from a fork
        of the run before the harm, and the run goes back only if one of them is accepted.
        """
        state = self._state
        if decision.trigger == "harm":
            first_seen = state.triggers.answer_harm()
            point = state.points.fork_before_harm(run, first_seen, state.history)
            if point is None:
                sound = first_seen - run.config.monitor.probe_every
                raise Skipped(
                    f"there is no state to go back to from step {sound} or before, "
                    "the last look that saw no harm"
                )
            return point
        diverged = decision.trigger == "diverged"
        alarm = state.triggers.answer(run.step, diverged=diverged)
        if alarm is not None:
            first = min(alarm, state.first_non_finite(alarm))
            decision.events += state.go_back(run, first, decision.harm, diverged=diverged)
            if diverged and run.step == decision.at:
                raise Skipped(f"the run has diverged, and {state.why_no_rewind(run)}")
        decision.accounted = run.ledger.total
        return RewindPoint(start=run, step=run.step)

    def plan(self, run: Run, point: RewindPoint, decision: Decision) -> Proposal | Followed:
        """Return the branches to verify: a rollback, or as many drafts as may be wasted.

        A small change on the way to the end of the run needs no branches; see `follow`.
        """
        return self._drafter().propose(run, point, decision, self._state)

    def _drafter(self, verification: Verification | None = None) -> Drafter:
        return Drafter(
            planner=self.planner,
            model=self.model,
            planning=self.planning,
            verification=verification or self._verification,
        )

    def verify(self, run: Run, proposal: Proposal, decision: Decision) -> Verified:
        """Train and judge the branches, and record the verdict. The run stays as it is."""
        state = self._state
        record = DecisionRecord.begin(
            state.folder.path,
            decision,
            proposal,
            replayable=state.settings.replayable,
        )
        rollouts, verdict = proposal.verify(run)
        if error := verdict.control.outcome.error:
            record.discard()
            raise Skipped(
                f"doing nothing could not be trained to compare with, so nothing is done: {error}",
                fault=True,
                control_failed=True,
            )
        record.write(verdict)
        return Verified(proposal=proposal, rollouts=rollouts, verdict=verdict, record=record)

    def commit(self, run: Run, verified: Verified, decision: Decision) -> tuple[Telemetry, ...]:
        """Make the run the accepted branch, or else the one left alone; return its new steps."""
        state = self._state
        kept = verified.adopt(run)
        state.throw_away(run, decision, verified.verdict.wasted)
        try:
            if verified.proposal.history is None:
                after_rollback(run, verified, kept, decision, state)
            else:
                after_draft(run, verified, kept, decision, state, self.model)
        except Exception as error:  # the run has become the branch, whatever could not be noted
            state.note_skip(run, decision, Skipped.because_of(error))
        return kept

    # ── a callback ────────────────────────────────────────────────────────────────────────────────

    def on_train_begin(self, run: Run, folder: RunFolder, store: CheckpointStore, /) -> None:
        """Start or resume the state of the loop. See `Callback`."""
        saved = self._loaded
        self._loaded = {}
        settings = self._settings(run)
        self._verification = self.verification or verification_of(settings)
        if not saved and self._left_at == (run, run.step):  # trained on in the same process
            self._state.settings = settings
            self._state.folder = folder
            self._state.store = store
            return
        self._state = LoopState.of(run, settings, folder, store)
        if not saved:
            for event in [*self._plan_start(run), *self._state.start(run)]:
                folder.event(event)
            return
        self._state.resume(saved)
        if isinstance(self.model, Learner) and saved["learned"] is not None:
            self.model.load_state_dict(saved["learned"])

    def _plan_start(self, run: Run) -> list[Event]:
        """Follow a plan from before the first step, and return the events."""
        state = self._state
        decision = Decision(
            number=state.number, trigger="start", at=run.step, harm=0.0, accounted=run.ledger.total
        )
        if run.step or "start" not in state.settings.triggers:
            return []
        try:
            followed = self._drafter().propose_start(run, decision, state)
            if followed is not None:
                decision.events.append(follow(run, followed, decision, state))
        except Exception as error:  # the run begins, whatever failed
            state.skip(run, decision, Skipped.because_of(error))
        return decision.events

    def next_block(self, run: Run, /) -> int:
        """Return the steps to the next probe, where harm is seen. See `Callback`."""
        monitor = run.config.monitor
        probes = monitor.enabled and monitor.probe_every
        if not (probes and "harm" in self._state.settings.triggers):
            return int(monitor.block)
        every = int(monitor.probe_every)
        return (1 - run.step) % every or every

    def on_evaluate(self, step: int, loss: float, /) -> None:
        """Take in a validation loss. See `Callback`."""
        self._state.triggers.on_evaluate(step, loss)
        self._state.validation = loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values. See `Callback`.

        If the model cannot save what it has learned, a resumed run starts with the model as it was.
        """
        learned = None
        if isinstance(self.model, Learner):
            try:
                learned = dict(self.model.state_dict())
            except Exception as error:  # the run is saved all the same
                reason = describe_error(error)
                self._state.fault = f"what the model has learned can't be saved: {reason}"
        return self._state.state_dict() | {"learned": learned}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Keep a state that `on_train_begin` takes on. See `Callback`.

        Raises:
            KeyError: The state is that of another callback.
        """
        if state and "purse" not in state:  # the saved name of the waste budget
            raise KeyError("purse")
        self._loaded = state

    def _settings(self, run: Run) -> BranchingSettings:
        """Return the settings of the loop on a run, with shares of it in steps."""
        config: BranchingConfig = self.config or run.config.branching
        return config.settings(run.config.steps)

    def cost_estimate(self, run: Run) -> CostEstimate:
        """Return upper bounds on the cost of steering a run, before it starts."""
        settings = self._settings(run)
        verification = self.verification or verification_of(settings)
        futures = Budget().futures if self.planning.allow is None else FEWEST
        planning = (futures or 0) * flops_per_future(world_model_of(self.model))
        branch = price_of_branches(run, verification, 1, verification.verify_steps)
        return CostEstimate.of(
            run,
            settings,
            width=verification.top_k,
            workers=verification.workers,
            decision=(branch + planning) / run.flops_ahead,
            follows=self._drafter(verification).follows_plans(settings),
            blind=blind_spots(run),
        )


def verification_of(settings: BranchingSettings) -> Verification:
    """Return the verification that a configuration describes."""
    how = {"cut": settings.cut_gain} if settings.rule == "agreement" else {}
    return Verification(
        top_k=settings.top_k,
        verify_steps=settings.verify_steps,
        rule=make_rule(settings.rule, **how),
        workers=settings.workers,
        executor=settings.executor,
        worth=settings.min_gain,
    )
