"""Planner that always proposes the same ramp of the learning rate, and looks at nothing.

In the branching loop it is the rule without a model: the triggers, the verification and the
rollback are those of the loop, and only the choice of candidates is not. A loop with a world model
must beat it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainenv.interventions import PARTS
from trainenv.tools.checks import number, whole
from trainenv.types import Candidate, Intervention, Plan, PlanningProblem, UserError

_LR = PARTS.index("lr_scale")
# Score of the ramp: only just better than the run left alone, since no model has seen it.
_UNSEEN = -1e-9
_ROUNDING = 1 + 1e-9  # factor that rounding may add


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """Rank one ramp of the learning rate just before doing nothing.

    A verification sets its `worth` to 0 to train the ramp, because the score is almost 0.

    Args:
        factor: Factor on the learning rate at each decision; a value of the action space.
        decisions: Number of decisions in a row, the one now included.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    factor: float = 1.1
    decisions: int = 4

    def __post_init__(self) -> None:
        number("factor", self.factor, above=0)
        whole("decisions", self.decisions, least=1)

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Rank the longest part of the ramp that the masks and the bounds of the rate allow."""
        nothing = Candidate(interventions=(Intervention(),), score=0.0)
        ramp = self._legal(problem)
        if not ramp or 0 in (problem.budget.futures, problem.budget.seconds):
            return Plan(planner="ramp", candidates=(nothing,))
        return Plan(
            planner="ramp",
            candidates=(Candidate(interventions=ramp, score=_UNSEEN), nothing),
        )

    def _legal(self, problem: PlanningProblem) -> tuple[Intervention, ...]:
        change = Intervention(lr_scale=self.factor)
        if change.does_nothing:
            return ()
        try:
            value = problem.codec.encode(change)[_LR]
        except UserError:  # not a value of this action space
            return ()
        ramp: tuple[Intervention, ...] = ()
        low, high = problem.rate_bounds or (0.0, math.inf)
        masks = problem.masks
        for _ in range(min(self.decisions, problem.decisions_left)):
            reached = self.factor ** (len(ramp) + 1)
            if not masks[_LR][value] or not low / _ROUNDING <= reached <= high * _ROUNDING:
                break
            ramp = (*ramp, change)
            if problem.masks_after is not None:
                masks = problem.masks_after(ramp)
        return ramp
