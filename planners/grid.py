"""Grid search: score every legal candidate, or an even choice of M of them, and rank them.

If there are more legal candidates than M, a quasi-random set, shifted by the seed, is chosen. It
wastes fewer evaluations on near repeats than a random set (Bousquet et al. 2017, arXiv:1706.03200).

With the model as the scorer, all candidates are one call of the model. With the executor as the
scorer, the planner is the oracle: every candidate is run for real and charged.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.scoring import SCORERS, Scorer, candidate_limit, score
from trainenv.planners.support.sequences import NOTHING, even, some
from trainenv.tools.checks import choice, whole
from trainenv.types import Plan, PlanningProblem


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rank all legal candidates, or an even choice of them.

    Args:
        candidates: Most candidates that are scored, M, doing nothing and proposals included.
        decisions: Number of decisions that a candidate spans; 1 to 4, as the model forecasts.
        judge: Source of scores: `model`, `executor`, or `either` (the model where there is one).
        steps: Real steps of a branch if the executor is the scorer; None for `decisions` decisions.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    candidates: int = 128
    decisions: int = 1
    judge: Scorer = "either"
    steps: int | None = None

    def __post_init__(self) -> None:
        whole("candidates", self.candidates, least=1)
        whole("decisions", self.decisions, least=1)
        choice("judge", self.judge, SCORERS)
        if self.steps is not None:
            whole("steps", self.steps, least=1)

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Score all candidates and rank them."""
        builder = PlanBuilder(problem, "grid")
        decisions = min(self.decisions, problem.decisions_left)
        limit = candidate_limit(builder, self.candidates, self.judge, decisions)
        spread = some(problem, limit, decisions, even)
        candidates = list(dict.fromkeys([NOTHING, *builder.proposals, *spread]))
        score(builder, candidates[:limit], self.judge, self.steps, decisions)
        return builder.plan()
