"""Runs steered by a planner that trains its candidates for real: AutoLRS, PBT and PB2.

    autolrs = planners.make("autolrs")
    train(run, folder, callback=PlannerCallback(planner=autolrs, decision_steps=15, every=150))
    pbt = planners.make("pbt", population=4, generations=5)
    train(run, folder, callback=population(run, pbt, members=4, generations=5))

For each plan, forks of the run are trained (`trainenv.rollouts.executor`) and the best of them
becomes the run. Everything else that was spent, validations included, is taken off the run's
budget. So the run ends that much earlier, fully annealed, at the cost of a run left alone.

AutoLRS (Jin et al. 2021, arXiv:2105.10762): each stage of τ steps begins with short trials of
learning rates. Deviation: the run continues from the trial that was chosen; the paper starts the
stage again.

PBT (Jaderberg et al. 2017, arXiv:1711.09846) and PB2 (Parker-Holder et al. 2020, arXiv:2002.02518):
the members share the budget, so that each trains a short run to the same end of the schedule.
Deviations: the members start from a common first block of steps. After the last generation, the
best member trains to the end alone, for about one interval. If no member is left that never changed
anything, a fork left alone is still trained for comparison, and the population ends about a
generation earlier.
"""

from __future__ import annotations

import math
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
    """Callback that lets a planner train forks of the run and follows its best candidate.

    Args:
        planner: Planner that needs an executor and no model.
        decision_steps: Steps from one intervention of a sequence to the next.
        criterion: Quantity that the planner minimises; None for its own default.
        start: Steps before the first plan.
        every: Steps from one plan to the next; None for a single plan.
        first: Factors on the learning rate that the first decision of a plan may take, besides
            those of the action space.
        proposes: True to try these factors before other candidates.
        short: Steps that the run has left while the planner trains its forks; None for all.
        share: Share of the budget left that a plan may cost, 0 to 1.
        seed: Random seed of the planner.

    Raises:
        UserError: A number is out of range.
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
    _debt: ComputeDebt = field(default_factory=ComputeDebt, init=False, repr=False)

    def __post_init__(self) -> None:
        if (
            self.decision_steps < 1
            or self.start < 0
            or any(count is not None and count < 1 for count in (self.every, self.short))
            or not 0 < self.share <= 1
        ):
            raise UserError(
                "decision_steps, every and short must be at least 1, start at least 0 and share "
                f"in (0, 1], found {self.decision_steps}, {self.every}, {self.short}, "
                f"{self.start} and {self.share}"
            )
        self._due = self.start

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Plan and follow the best candidate if a plan is due. See `Callback`."""
        if self._due is None or run.step < self._due or run.done or run.diverged:
            return CallbackResult()
        self._due = None
        if self.every is not None:
            self._due = run.step + self.every
        before = self._spent(run)
        end = run.horizon.end
        left = run.horizon.end - run.step
        if self.short is not None:
            run.spend(max(0, left - self.short))
        rollouts = Rollouts(run, decision_steps=self.decision_steps)
        budget = Budget(futures=None, flops=self.share * left * run.flops_ahead)
        best = self.planner.plan(self._problem(run, window, rollouts, budget)).best
        response = self._follow(run, rollouts, best)
        run.end_at(end - self._debt.settle(run, self._spent(run) - before))
        return response

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the next plan and the compute owed. See `Callback`."""
        return {"due": self._due, "owed": self._debt.owed}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take on the state that `state_dict` returned. See `Callback`."""
        if state:
            self._due = state["due"]
            self._debt = ComputeDebt(float(state["owed"]))

    def _follow(self, run: Run, rollouts: Rollouts, best: Candidate) -> CallbackResult:
        """Make the run the trained candidate; if that failed, apply its first intervention."""
        start = run.step
        sequence = best.interventions
        steps = 0
        if best.outcomes and best.outcomes[-1].looks:
            steps = best.outcomes[-1].looks[-1]
        future = rollouts.future(sequence, steps)
        kept: Sequence[Telemetry] = ()
        if (
            steps
            and future.state is not None
            and not (future.diverged or future.error or future.stopped)
        ):
            kept = rollouts.adopt(sequence, steps)
            taken = sequence[: math.ceil(steps / self.decision_steps)]
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
        proposals: list[tuple[Intervention]] = []
        if self.proposes:
            proposals = [(Intervention(lr_scale=factor),) for factor in self.first]
        return PlanningProblem(
            history=history,
            codec=codec,
            masks=codec.masks(run),
            generator=np.random.default_rng([self.seed, run.step]),
            executor=rollouts,
            criterion=self.criterion,
            budget=budget,
            masks_after=masks_after,
            proposals=proposals,
        )

    def _spent(self, run: Run) -> float:
        """Return the FLOPs of wasted branches and of evaluations so far."""
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
    """Return the callback for a population that shares the budget of a run.

    The budget is spent on all generations of all members, one more of the best member, and their
    evaluations.

    Args:
        run: Run before its first step.
        planner: `planners.PBT` or `PB2` with these members and generations, and an interval of one
            decision.
        members: Number of members of the population.
        generations: Number of generations.
        criterion: Quantity that members are compared by; None for the planner's default.
        first: Factors on the learning rate that members start with, besides other single changes.
        seed: Random seed of the planner.
    """
    # The monitor's probes take a hundredth.
    left = 0.98 * (run.horizon.end - run.config.monitor.block)
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
