"""Who says how good a candidate is: the model, by a forecast, or the executor, by running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.sequences import Sequenced, count
from trainenv.types import UserError

Scorer = Literal["model", "executor", "either"]
JUDGES: tuple[Scorer, ...] = get_args(Scorer)


def look(
    draft: PlanBuilder,
    sequences: Sequence[Sequenced],
    judge: Scorer,
    steps: int | None,
    decisions: int,
) -> list[float]:
    """Score sequences, as far as the budget goes; NaN where there is none.

    Args:
        draft: what is charged, and where the scores go.
        sequences: to be looked at, the most promising first.
        judge: `either` is the model where there is one.
        steps: real steps of a branch; None for `decisions` of them, or what is left of the run.
        decisions: that the longest sequence spans.

    Raises:
        UserError: the problem does not have that judge.
    """
    if draft.problem.model is None and draft.problem.executor is None:
        raise UserError(
            f"{draft.planner} needs a model or an executor, found neither in the problem; hand one in"
        )
    if _by_model(draft, judge):
        return draft.forecast(sequences)
    return draft.run(sequences, steps or branch_steps(draft, decisions))


def room(draft: PlanBuilder, candidates: int, judge: Scorer, decisions: int) -> int:
    """How many candidates to choose: an even choice of few is better than the first few of an even choice of many.

    Where the budget allows fewer than are wanted and there are, that is noted.
    """
    if not _by_model(draft, judge):
        return candidates
    if draft.futures_left < min(candidates, count(draft.problem.masks, decisions)):
        draft.exhausted = True
    return int(min(candidates, max(1, draft.futures_left)))


def _by_model(draft: PlanBuilder, judge: Scorer) -> bool:
    return judge == "model" or (judge == "either" and draft.problem.model is not None)


def branch_steps(draft: PlanBuilder, decisions: int) -> int:
    """Steps of so many decisions, or of what is left of the run; at least 1."""
    history = draft.problem.history
    return max(1, min(decisions * history.decision_steps, len(history.lrs_ahead)))
