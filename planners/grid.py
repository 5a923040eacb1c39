"""Grid search: look at every legal candidate, or at an even choice of M of them, and rank.

Where there are more legal candidates than `candidates`, a quasi-random set is taken instead of a
random one (Bousquet et al. 2017, arXiv:1706.03200, show that it wastes fewer looks on near
repeats); it is shifted by the seed.

With the model as the judge it is one forecast for all. With the executor as the judge it is the
oracle: every candidate is run for real, and is charged for.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainenv.planners.hyperparameters import choice, whole
from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.scoring import JUDGES, Scorer, look, room
from trainenv.planners.support.sequences import NOTHING, even, some
from trainenv.types import Plan, PlanningProblem


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rank all legal candidates, or an even choice.

    Args:
        candidates: M, at most so many are looked at, doing nothing and proposals among them.
        decisions: how many decisions a candidate spans; from 1 to 4, as the model forecasts.
        judge: `model`, `executor`, or `either`: the model where there is one.
        steps: real steps of a branch where the executor is the judge; None for one decision for
            each that the candidate spans.

    Raises:
        UserError: a hyperparameter is out of range.
    """

    candidates: int = 128
    decisions: int = 1
    judge: Scorer = "either"
    steps: int | None = None

    def __post_init__(self) -> None:
        whole("candidates", self.candidates, least=1)
        whole("decisions", self.decisions, least=1)
        choice("judge", self.judge, JUDGES)
        if self.steps is not None:
            whole("steps", self.steps, least=1)

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Rank them."""
        draft = PlanBuilder(problem, "grid")
        decisions = min(self.decisions, problem.decisions_left)
        most = room(draft, self.candidates, self.judge, decisions)
        listed = list(
            dict.fromkeys([NOTHING, *draft.proposals, *some(problem, most, decisions, even)])
        )
        look(draft, listed[:most], self.judge, self.steps, decisions)
        return draft.plan()
