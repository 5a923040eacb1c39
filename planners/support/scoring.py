"""Scores of candidates by the model, with a forecast, or by the executor, with real steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.sequences import Interventions, count
from trainenv.types import UserError

Scorer = Literal["model", "executor", "either"]
SCORERS: tuple[Scorer, ...] = get_args(Scorer)


def score(
    builder: PlanBuilder,
    sequences: Sequence[Interventions],
    judge: Scorer,
    steps: int | None,
    decisions: int,
) -> list[float]:
    """Score sequences as far as the budget allows; NaN for sequences without a score.

    Args:
        builder: Builder that is charged and that keeps the scores.
        sequences: Sequences to score, the most promising first.
        judge: Scorer; `either` is the model where there is one, otherwise the executor.
        steps: Real steps of a branch; None for `decisions` decisions, or the rest of the run.
        decisions: Number of decisions that the longest sequence spans.

    Raises:
        UserError: The problem does not have that scorer.
    """
    if builder.problem.model is None and builder.problem.executor is None:
        raise UserError(
            f"{builder.planner} needs a model or an executor, found neither in the problem; "
            "hand one in"
        )
    if _by_model(builder, judge):
        return builder.forecast(sequences)
    return builder.run(sequences, steps or branch_steps(builder, decisions))


def candidate_limit(builder: PlanBuilder, candidates: int, judge: Scorer, decisions: int) -> int:
    """Return how many candidates to choose, and note if the budget allows fewer than wanted.

    Choosing few candidates evenly is better than scoring the first few of an even choice of many.
    """
    if not _by_model(builder, judge):
        return candidates
    if builder.futures_left < min(candidates, count(builder.problem.masks, decisions)):
        builder.exhausted = True
    return int(min(candidates, max(1, builder.futures_left)))


def branch_steps(builder: PlanBuilder, decisions: int) -> int:
    """Return the steps of some decisions, or of the rest of the run; at least 1."""
    history = builder.problem.history
    return max(1, min(decisions * history.decision_steps, len(history.lrs_ahead)))


def _by_model(builder: PlanBuilder, judge: Scorer) -> bool:
    return judge == "model" or (judge == "either" and builder.problem.model is not None)
