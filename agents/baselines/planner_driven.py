"""Whole runs steered by a planner that tries things for real: AutoLRS stage by stage, PBT and PB2 as one population.

    train(run, folder, callback=PlannerCallback(planner=planners.make("autolrs"), decision_steps=15,
    every=150)) train(run, folder, callback=population(run, planners.make("pbt", population=4,
    generations=5)))

At each plan forks of the run are trained (`trainenv.rollouts.executor`), the best of them becomes
the run, and whatever else was spent, validations included, comes off the run's budget: it ends,
annealed, that much earlier, and has cost what a run left alone does.

AutoLRS (Jin et al. 2021, arXiv:2105.10762): each stage of τ steps begins with short tries of
learning rates. Deviation: the short run of the rate that was chosen is gone on with, where the
paper starts the stage again. PBT (Jaderberg et al. 2017, arXiv:1711.09846), PB2 (Parker-Holder et
al. 2020, arXiv:2002.02518): the members share the budget and so train a short run each, to the same
end of the schedule. Deviations: they start from a common first block of steps; after the last
generation the best one trains to the end alone, an interval or so. Where doing nothing has died out
among the members, a fork of it is still trained to compare with, and the population ends about a
generation earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainenv.agents.waste_budget import ComputeDebt
from trainenv.interventions import ActionCodec, after
from trainenv.loop import Callback, CallbackResult
from trainenv.rollouts.executor import Rollouts
from trainenv.types import (
    Budget,
    Candidate,
    Criterion,
    Event,
    Intervention,
    Masks,
    Planner,
    PlanningProblem,
    Run,
    RunHistory,
    Telemetry,
    UserError,
)
from trainenv.verification.record import changes


@dataclass(kw_only=True)
class PlannerCallback(Callback):
    """Asks a planner what to do with a run, gives it real forks to find out with, and does the best that it found.

    Args:
        planner: needs an executor and no model.
        decision_steps: steps of one of the planner's decisions.
        criterion: what the planner is to make small; None for its own default.
        start: steps before the first plan.
        every: steps from one plan to the next; None for a single plan.
        first: factors on the learning rate that the first decision of a plan may take beside those
            of the action space.
        proposes: whether these are proposed, to be looked at before others.
        short: steps that the run is to have from the plan on while the planner looks at it; None
            for all that are left.
        share: of what is left of the budget, that a plan may cost.
        seed: of the planner's random choices.

    Raises:
        UserError: a number is out of range.
    """

    planner: Planner
    decision_steps: int
    criterion: Criterion | None = None
    start: int = 0
    every: int | None = None
    first: tuple[float, ...] = ()
    proposes: bool = False
    short: int | None = None
    share: float = 0.5
    seed: int = 0
    _due: int | None = field(default=None, init=False, repr=False)
    _tab: ComputeDebt = field(default_factory=ComputeDebt, init=False, repr=False)

    def __post_init__(self) -> None:
        if (
            self.decision_steps < 1
            or self.start < 0
            or any(count is not None and count < 1 for count in (self.every, self.short))
            or not 0 < self.share <= 1
        ):
            raise UserError(
                "decision_steps, every and short must be at least 1, start at least 0 and share in (0, 1], "
                f"found {self.decision_steps}, {self.every}, {self.short}, {self.start} and {self.share}"
            )
        self._due = self.start

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Plan and follow, if it is time."""
        if self._due is None or run.step < self._due or run.done or run.diverged:
            return CallbackResult()
        self._due = None if self.every is None else run.step + self.every
        before = self._spent(run)
        end = run.horizon.end
        left = run.horizon.end - run.step
        if self.short is not None:
            run.spend(max(0, left - self.short))
        rollouts = Rollouts(run, decision_steps=self.decision_steps)
        budget = Budget(futures=None, flops=self.share * left * run.flops_ahead)
        best = self.planner.plan(self._problem(run, window, rollouts, budget)).best
        response = self._follow(run, rollouts, best)
        run.end_at(end - self._tab.settle(run, self._spent(run) - before))
        return response

    def state_dict(self) -> dict[str, Any]:
        """When it is to plan again, and what it has not paid for yet."""
        return {"due": self._due, "owed": self._tab.owed}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from there."""
        if state:
            self._due = state["due"]
            self._tab = ComputeDebt(float(state["owed"]))

    def _follow(self, run: Run, rollouts: Rollouts, best: Candidate) -> CallbackResult:
        """Make the run what the best candidate has come to; where that was lost, begin like it."""
        start = run.step
        sequence = best.interventions
        steps = best.outcomes[-1].looks[-1] if best.outcomes and best.outcomes[-1].looks else 0
        future = rollouts.future(sequence, steps)
        kept: Sequence[Telemetry] = ()
        if (
            steps
            and future.state is not None
            and not (future.diverged or future.error or future.stopped)
        ):
            kept = rollouts.adopt(sequence, steps)
            taken = sequence[: -(-steps // self.decision_steps)]
        else:
            run.apply(sequence[0])
            taken = sequence[:1]
        events = [
            Event(start + place * self.decision_steps, "intervention", changes(one))
            for place, one in enumerate(taken)
            if not one.does_nothing
        ]
        return CallbackResult(events=events, kept=kept)

    def _problem(
        self, run: Run, window: Sequence[Telemetry], rollouts: Rollouts, budget: Budget
    ) -> PlanningProblem:
        space = run.config.interventions
        usual = len(space.lr_scales)
        codec = ActionCodec(space.model_copy(update={"lr_scales": (*space.lr_scales, *self.first)}))

        def masks_after(sequence: Sequence[Intervention]) -> Masks:
            masks = codec.masks(after(run, *sequence))
            masks[0][usual:] = False
            return masks

        history = RunHistory(
            telemetry=window,
            lrs_ahead=run.lrs_ahead(),
            base_lr=run.base_lr,
            uniform_loss=run.uniform_loss,
            decision_steps=self.decision_steps,
            flagged_ahead=len(run.flagged_ahead),
        )
        return PlanningProblem(
            history=history,
            codec=codec,
            masks=codec.masks(run),
            generator=np.random.default_rng([self.seed, run.step]),
            executor=rollouts,
            criterion=self.criterion,
            budget=budget,
            masks_after=masks_after,
            proposals=[(Intervention(lr_scale=factor),) for factor in self.first]
            if self.proposes
            else (),
        )

    def _spent(self, run: Run) -> float:
        """FLOPs of branches that were thrown away and of evaluations."""
        return float(run.ledger["verify"] + run.ledger["evaluate"])


def population(
    run: Run,
    planner: Planner,
    *,
    members: int,
    generations: int,
    criterion: Criterion | None = None,
    first: tuple[float, ...] = (0.1, 0.3, 3.0),
    seed: int = 0,
) -> PlannerCallback:
    """A population that shares the budget of a run, to be handed to `train` with it.

    Its generations are so long that those of all members and one more of the best one, with their
    evaluations, are the budget.

    Args:
        run: before its first step.
        planner: `planners.PBT` with as many members and generations, an interval of one decision.
        members: of the population.
        generations: of it.
        criterion: what members are compared by.
        first: factors on the learning rate that members differ by at first, beside other single
            changes.
        seed: of the planner's random choices.
    """
    left = 0.98 * (
        run.horizon.end - run.config.monitor.block
    )  # the monitor's probes take a hundredth
    evaluations = (members * generations + 1) * run.flops_per_evaluation / run.flops_ahead
    interval = max(1, int((left - evaluations) / (members * generations + 1)))
    return PlannerCallback(
        planner=planner,
        decision_steps=interval,
        criterion=criterion,
        first=first,
        proposes=True,
        short=(generations + 1) * interval,
        share=max(0.01, 1 - interval / left),
        seed=seed,
    )
