"""Drafts: branches that the planner, the range test or a rollback proposes to verify."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from trainenv.agents.branching.decision import Decision, Proposal, Skipped
from trainenv.agents.branching.follow import Followed, first_part
from trainenv.agents.branching.loop_state import LoopState
from trainenv.agents.branching.problems import (
    PlanningOptions,
    flops_of,
    flops_per_future,
    within,
    world_model_of,
)
from trainenv.agents.branching.rewind_points import RewindPoint
from trainenv.agents.branching.rollback import plan_rollback, price_of_rollback
from trainenv.config.schema import BranchingSettings
from trainenv.interventions import ActionCodec
from trainenv.training.history import history_of
from trainenv.types import (
    Candidate,
    Learner,
    PathModel,
    Plan,
    Planner,
    Run,
    RunHistory,
    UserError,
    WorldModel,
    as_path_model,
)
from trainenv.verification.rules import Better
from trainenv.verification.verify import Verification

_LEVELS = 16  # decisions of a path that jumps to another rate and keeps it; any number will do
_START_GAIN = 0.03  # least gain of a plan at the start, nats: about the error of its forecast there
# Factor on the least gain of a plan while none is followed. Most gains forecast for a tuned run are
# small, and errors. A wrong rate promises more at first, and less as it is corrected.
_FIRST_GAIN = 1.6
_MORE = 4  # times as many steps for a branch that no model has forecast


@dataclass(frozen=True, kw_only=True)
class Drafter:
    """Proposes the branches of a decision.

    Args:
        planner: Planner that ranks candidate interventions.
        model: World model, or a learner that has one; None for a planner that needs none.
        planning: Settings of the planning problem.
        verification: Settings of the verification.
    """

    planner: Planner
    model: WorldModel | Learner | None
    planning: PlanningOptions
    verification: Verification

    def propose(
        self, run: Run, point: RewindPoint, decision: Decision, state: LoopState
    ) -> Proposal | Followed:
        """Return the branches to verify, as many as may be wasted, or a change without a trial.

        From before harm it is a rollback, during the warm-up the proposal of the range test, and
        otherwise the draft of the planner. A plan to the end of the run is followed without a
        trial, unless the run has diverged.

        Raises:
            Skipped: Nothing promises enough, or too little is left to waste.
        """
        waste = state.waste
        if point.since:
            if reason := waste.refusal(run, price_of_rollback(run, len(point.since))):
                raise Skipped(reason)
            return plan_rollback(run, point, self.verification)
        usual = self.verification
        steps = state.acceptance.steps(usual.verify_steps)
        most = state.acceptance.branches(usual.top_k)
        plan: Plan | None = None
        if decision.trigger == "warmup":  # no model foresees it, so real steps must show the gain
            plan = state.triggers.range_test.propose(run.step)
            if self.follows_plans(state.settings):
                self._consult(run, plan, decision, state)
            usual = replace(usual, top_k=1, rule=Better(), worth=0.0)
            steps = _MORE * usual.verify_steps
            most = 1

        elif decision.trigger != "diverged" and self.follows_plans(state.settings):
            return self._follow(run, decision, state)

        def price(branches: int) -> float:
            return price_of_branches(run, usual, branches, steps)

        least = price(1)
        if reason := waste.refusal(run, least, trial=decision.is_trial):
            raise Skipped(reason)
        # The newest validation need not be measured again: if it is 2 % off, forecasts of changes
        # differ by 1e-4, and most drafts promise nothing.
        history = state.history_of(run, validation=state.validation)
        if plan is None:
            plan = self._ask_planner(run, history, decision, state, least)
        width = waste.widest(run, most, price)
        if not width:
            raise Skipped(waste.shortfall(run, least))
        verification = replace(usual, top_k=width, width=state.acceptance.width)
        if not verification.chosen(plan):
            reason = "; ".join(plan.faults) or "no draft promises enough"
            raise Skipped(reason, fault=bool(plan.faults))
        return Proposal(
            point=point,
            plan=plan,
            verification=verification,
            steps=steps,
            decision_steps=history.decision_steps,
            limit=waste.left_in(run),
            history=history,
        )

    def propose_start(self, run: Run, decision: Decision, state: LoopState) -> Followed | None:
        """Return the first part of the planner's path before the first step.

        A rate that is much too high does its harm in the first steps: after 36 of 600 steps at
        three times the right rate, nothing was left of what a third of it would have gained.

        Returns:
            The change; None if the planner does not plan to the end, or the usual learning rate of
            such a model, which is all that is known by then, is not.

        Raises:
            Skipped: No path promises enough.
        """
        history = history_of(run, (), horizon=state.settings.horizon)
        if not self.follows_plans(state.settings) or math.isnan(history.usual_lr):
            return None
        return self._followed(run, history, decision, state, min_gain=_START_GAIN)

    def follows_plans(self, settings: BranchingSettings) -> bool:
        """Tell whether plans of the learning rate take effect without a trial."""
        return (
            self.planning.to_the_end
            and settings.untried_change > 0
            and as_path_model(world_model_of(self.model)) is not None
        )

    def _consult(self, run: Run, plan: Plan, decision: Decision, state: LoopState) -> None:
        """Skip the trial of a higher rate, and of a lower one that the model expects to end higher.

        A plan to the end raises the rate where that pays, and needs no trial for it. A lower rate
        looks better for some steps of any warm-up, so that a trial alone would accept it.
        """
        if plan.best.interventions[0].lr_scale > 1:
            raise Skipped("the rate is raised by plans to the end, not by a trial")
        model = cast(PathModel, world_model_of(self.model))
        flops = float(getattr(model, "flops_per_path", 0.0))
        if reason := state.waste.refusal(run, flops):
            raise Skipped(reason)
        history = state.history_of(run)
        factor = plan.best.interventions[0].lr_scale
        values = model.path_values(history, np.full((1, _LEVELS), math.log(factor)))
        run.ledger.charge("plan", flops)
        state.throw_away(run, decision, flops)
        change = float(values.change[0])
        spread = float(values.disagreement[0])
        if change > 0:
            raise Skipped(f"the model forecasts {change:+.3f} ± {spread:.3f} for another rate")

    def _follow(self, run: Run, decision: Decision, state: LoopState) -> Followed:
        """Return the first part of the planner's path.

        During a long warm-up the rate is far from its peak, so that the state tells little about
        it: changes then did more harm than good.

        Raises:
            Skipped: The rate still warms up, or no path promises enough.
        """
        if run.step < run.config.schedule.warmup:
            raise Skipped("the rate still warms up")
        min_gain = state.settings.min_gain
        if not state.triggers.steering:
            min_gain *= _FIRST_GAIN
        history = state.history_of(run)
        return self._followed(run, history, decision, state, min_gain=min_gain)

    def _followed(
        self,
        run: Run,
        history: RunHistory,
        decision: Decision,
        state: LoopState,
        *,
        min_gain: float,
    ) -> Followed:
        settings = state.settings
        plan = self._ask_planner(run, history, decision, state, 0.0)
        followed = first_part(
            plan,
            history,
            every=settings.every,
            most=settings.untried_change,
            min_gain=min_gain,
        )
        return replace(followed, end=self._end_of(plan.best, history))

    def _end_of(self, best: Candidate, history: RunHistory) -> tuple[float, float] | None:
        """Return the forecast interval of ln loss at the end of the run on the best path."""
        model = cast(PathModel, world_model_of(self.model))
        left = max(1, -(-len(history.lrs_ahead) // history.decision_steps))
        path = np.zeros((1, left))
        for place, one in enumerate(best.interventions[:left]):
            path[0, place:] += math.log(one.lr_scale)
        values = model.path_values(history, path)
        low, high = float(values.low[0]), float(values.high[0])
        if not (math.isfinite(low) and math.isfinite(high)):
            return None
        return low, high

    def _ask_planner(
        self, run: Run, history: RunHistory, decision: Decision, state: LoopState, least: float
    ) -> Plan:
        """Return the planner's plan; `least` FLOPs are kept for verifying one branch of it."""
        model = world_model_of(self.model)
        per_future = flops_per_future(model)
        if self.planning.to_the_end:
            per_future = max(per_future, float(getattr(model, "flops_per_path", 0.0)))
        codec = ActionCodec(run.config.interventions)
        generator = np.random.default_rng([run.config.seed, run.step, decision.number])
        highest = state.highest_lr
        if state.fired_lately:
            highest = min(highest, run.lr_scale)
        planning = replace(self.planning, parts=state.settings.parts, highest=highest)
        problem = planning.problem(run, history, codec, model, generator)
        left = state.waste.left_in(run) - least
        problem = replace(problem, budget=within(problem.budget, left, per_future))
        if problem.budget.futures == 0:
            raise Skipped(state.waste.shortfall(run, least))
        plan = self.planner.plan(problem)
        if not isinstance(plan, Plan):
            raise UserError(f"a planner must return a Plan, found {plan!r:.80}")
        flops = flops_of(plan, model)
        run.ledger.charge("plan", flops)
        state.throw_away(run, decision, flops)
        return plan


def price_of_branches(run: Run, verification: Verification, branches: int, steps: int) -> float:
    """Return the most FLOPs that a verification wastes: if all branches and the control fail."""
    control = steps * run.flops_ahead + run.flops_per_evaluation
    return verification.thrown_away(run, branches, steps) + control
