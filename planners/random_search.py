"""Random search (Bergstra and Bengio 2012): score candidates drawn uniformly, and rank them.

It is the baseline that other planners must beat.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.scoring import SCORERS, Scorer, candidate_limit, score
from trainenv.planners.support.sequences import NOTHING, some, uniform
from trainenv.tools.checks import choice, whole
from trainenv.types import Plan, PlanningProblem


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Rank different candidates that are drawn uniformly.

    Args:
        candidates: Number of candidates, doing nothing and proposals included; fewer if there are
            fewer legal ones.
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
        """Score random candidates and rank them."""
        builder = PlanBuilder(problem, "random")
        decisions = min(self.decisions, problem.decisions_left)
        limit = candidate_limit(builder, self.candidates, self.judge, decisions)
        drawn = some(problem, limit, decisions, uniform)
        candidates = list(dict.fromkeys([NOTHING, *builder.proposals, *drawn]))
        score(builder, candidates[:limit], self.judge, self.steps, decisions)
        return builder.plan()
