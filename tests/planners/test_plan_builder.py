"""Shared parts of all planners: masks, budgets, faults, and the ranking."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.planners import PlanBuilder
from trainenv.planners.support.budget_account import Account
from trainenv.planners.support.sequences import NOTHING, canonical
from trainenv.planners.testing import ToyWorld, watched
from trainenv.types import Budget, Cost, Intervention

LOWER, HIGHER = (Intervention(lr_scale=0.9),), (Intervention(lr_scale=1.1),)
RESET, SAME = (Intervention(momentum_reset=True),), (Intervention(clip="zclip"),)
IDLE = Intervention()
WORLD = ToyWorld(seed=1)


class Dropping:
    """A pruner that drops resets, or that fails."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def hopeless(self, history: object, sequences: Any, /) -> list[str]:
        assert NOTHING not in sequences
        if self.fault == "raises":
            raise RuntimeError("no curve")
        found = ["hopeless" if one[0].momentum_reset else "" for one in sequences]
        return found[:-1] if self.fault == "too few" else found


# ── forecasts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_scores_are_the_model_s_and_the_same_again_is_free() -> None:
    problem, model, _ = watched(WORLD.problem())
    draft = PlanBuilder(problem, "x")
    found = draft.forecast([LOWER, (*LOWER, IDLE), NOTHING, LOWER])
    assert found[0] == found[1] == found[3] == pytest.approx(0.99 * WORLD.delta(LOWER) + 0.01 * 0.5)
    assert found[2] == pytest.approx(0.01 * 0.5)
    assert model.futures == draft.spent.futures == 2
    draft.forecast([HIGHER, LOWER])
    assert model.futures == 3
    assert [one.interventions for one in draft.plan().candidates] == sorted(
        [LOWER, HIGHER, NOTHING], key=lambda one: WORLD.delta(one)
    )


def test_only_what_is_legal_is_asked_and_what_is_not_is_recorded() -> None:
    problem, model, _ = watched(
        WORLD.problem(proposals=[SAME, LOWER, (Intervention(lr_scale=0.55),)], rate_bounds=None)
    )
    draft = PlanBuilder(problem, "x")
    assert draft.proposals == [LOWER]
    assert math.isnan(draft.forecast([SAME])[0])
    draft.score(SAME, -9.0)
    plan = draft.plan()
    assert [one.interventions for one in plan.candidates] == [NOTHING]
    assert [one.reason for one in plan.dropped] == [
        "illegal: a mask forbids the value of part 2",
        "illegal: lr_scale must be one of 1, 0.8, 0.9, 1.1 in this action space, found 0.55",
    ]
    assert model.asked == [NOTHING]


def test_later_masks_are_those_after_the_sequence() -> None:
    twice = (
        Intervention(clip="arc"),
        Intervention(clip="zclip"),
    )  # zclip is in force now, and no longer then
    assert math.isfinite(PlanBuilder(WORLD.problem(), "x").forecast([twice])[0])
    draft = PlanBuilder(WORLD.problem(masks_after=None), "x")
    assert math.isnan(draft.forecast([twice])[0])
    assert (
        draft.plan().dropped[0].reason
        == "illegal at decision 1: a mask forbids the value of part 2"
    )


def test_a_sequence_is_no_longer_than_the_run() -> None:
    problem = WORLD.problem()
    problem = replace(
        problem, history=replace(problem.history, lrs_ahead=[1e-3] * 51)
    )  # a decision is 50 steps
    draft = PlanBuilder(problem, "x")
    assert math.isfinite(draft.forecast([LOWER * 2])[0])
    assert math.isnan(draft.forecast([LOWER * 3])[0])
    assert math.isfinite(draft.forecast([(*LOWER, IDLE, IDLE)])[0])


def test_the_pruner_comes_before_the_model() -> None:
    problem, model, _ = watched(WORLD.problem(pruner=Dropping()))
    draft = PlanBuilder(problem, "x")
    assert math.isnan(draft.forecast([RESET, LOWER])[0])
    assert model.asked == [NOTHING, LOWER]
    assert [(one.interventions, one.reason) for one in draft.plan().dropped] == [
        (RESET, "hopeless")
    ]


@pytest.mark.parametrize("fault", ["raises", "too few"])
def test_a_pruner_that_fails_is_a_fault(fault: str) -> None:
    draft = PlanBuilder(WORLD.problem(pruner=Dropping(fault)), "x")
    draft.forecast([RESET, LOWER])
    plan = draft.plan()
    assert len(plan.candidates) == 1
    assert plan.faults[0].startswith("the pruner failed: ")


def test_without_a_sound_forecast_of_doing_nothing_no_score_counts() -> None:
    problem, model, _ = watched(WORLD.problem())
    model.fault = "nan for doing nothing"
    draft = PlanBuilder(problem, "x")
    draft.forecast([LOWER, HIGHER])
    assert [one.interventions for one in draft.plan().candidates] == [NOTHING]


def test_blocks_are_asked_until_the_time_is_up() -> None:
    problem, model, _ = watched(WORLD.problem(budget=Budget(futures=None, seconds=2.5)))
    draft = PlanBuilder(problem, "x", clock=lambda: float(model.calls))  # a second a call
    first = [Intervention(lr_scale=scale) for scale in (0.8, 0.9, 1.1)]
    second = [
        Intervention(lr_scale=a, weight_decay_scale=b)
        for a, b in product((0.8, 0.9, 1.1, 1.0), (0.5, 2.0, 1.0))
    ]
    sequences = list(product(first, second))
    sequences += [(*one, Intervention(clip="arc")) for one in sequences] + [
        (*one, Intervention(clip="none")) for one in sequences
    ]
    scores = draft.forecast(sequences)
    assert model.calls == 3
    assert model.futures == 96
    assert np.isfinite(scores).sum() == 95
    assert not draft.plan().complete
    assert draft.plan().cost.seconds == 3.0


# ── real runs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_control_runs_beside_whatever_is_run_once_a_draw() -> None:
    problem, _, executor = watched(WORLD.problem())
    draft = PlanBuilder(problem, "x")
    first = draft.run([LOWER], 50)
    assert executor.asked == [NOTHING, LOWER]
    assert first[0] == pytest.approx(
        math.log(draft.outcome(LOWER, 50).annealed / draft.outcome(NOTHING, 50).annealed)
    )  # type: ignore[union-attr]
    draft.run([HIGHER, LOWER], 50)
    assert executor.asked == [NOTHING, LOWER, HIGHER]
    draft.run([LOWER], 50, draw=1)
    assert executor.asked[3:] == [NOTHING, LOWER]
    control = draft.plan().control
    assert control.score == 0.0
    assert len(control.outcomes) == 2


def test_only_as_many_are_run_as_can_be_paid() -> None:
    problem, _, executor = watched(
        WORLD.problem(budget=Budget(steps=200))
    )  # a branch takes 50 and 20 to cool down
    draft = PlanBuilder(problem, "x")
    assert np.isfinite(draft.run([LOWER, HIGHER, RESET], 50)).tolist() == [True, False, False]
    assert executor.steps == draft.spent.steps == 140
    assert draft.exhausted
    assert not draft.affords([HIGHER], 50)
    problem, _, executor = watched(WORLD.problem(budget=Budget(steps=100)))
    assert math.isnan(PlanBuilder(problem, "x").run([LOWER], 50)[0])
    assert executor.calls == 0  # a control alone would teach nothing


def test_a_failed_branch_leaves_the_others_and_a_failed_control_leaves_none() -> None:
    for fault, kept in (("errors", 0), ("error of the control", 0), ("nan", 0), ("too few", 1)):
        problem, _, executor = watched(WORLD.problem())
        executor.fault = fault  # type: ignore[assignment]
        draft = PlanBuilder(problem, "x")
        assert np.isfinite(draft.run([LOWER, HIGHER], 50)).sum() == kept
        plan = draft.plan()
        assert plan.faults
        assert plan.cost.steps == executor.steps > 0
        draft.run([RESET], 50)
        assert executor.calls == 1  # nothing is called after a fault


def test_a_branch_that_diverges_has_the_price_of_it() -> None:
    draft = PlanBuilder(WORLD.problem(), "x")
    assert draft.run([(Intervention(clip="none"),)], 50) == [0.5]
    assert draft.run([LOWER], 50)[0] == pytest.approx(WORLD.delta(LOWER), rel=1e-6)


# ── the plan ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_equals_doing_nothing_comes_first() -> None:
    draft = PlanBuilder(WORLD.problem(), "x")
    draft.score(LOWER, 0.0)
    draft.score(HIGHER, 0.0)
    assert [one.interventions for one in draft.plan().candidates] == [NOTHING, LOWER, HIGHER]


def test_a_ranking_holds_whatever_the_scores() -> None:
    draft = PlanBuilder(WORLD.problem(), "x")
    draft.forecast([LOWER, HIGHER, RESET])
    draft.score(HIGHER, -9.0)
    draft.rank([(RESET, -0.01), (LOWER, -0.02)])
    plan = draft.plan()
    assert [(one.interventions, one.score) for one in plan.candidates if not one.does_nothing] == [
        (RESET, -0.01),
        (LOWER, -0.01),
        (HIGHER, -0.01),
    ]


def test_what_is_dropped_keeps_its_outcomes_and_doing_nothing_stays() -> None:
    draft = PlanBuilder(WORLD.problem(), "x")
    draft.run([LOWER], 50)
    draft.drop(LOWER, "replaced")
    draft.drop(NOTHING, "never")
    plan = draft.plan()
    assert [one.interventions for one in plan.candidates] == [NOTHING]
    assert [(one.reason, len(one.outcomes)) for one in plan.dropped] == [("replaced", 1)]


@settings(max_examples=80, deadline=None)
@given(
    limit=st.integers(0, 300),
    prices=st.lists(st.integers(0, 60), min_size=0, max_size=12),
    spent=st.integers(0, 50),
    flops=st.booleans(),
)
def test_the_longest_beginning_that_can_be_paid(
    limit: int, prices: list[int], spent: int, flops: bool
) -> None:
    account = Account(Budget(flops=float(limit)) if flops else Budget(steps=limit), lambda: 0.0)
    account.spend(steps=spent, flops=float(spent))
    paid = account.affordable(
        list(prices), lambda some: Cost(steps=sum(some), flops=float(sum(some)))
    )
    sums = np.cumsum([0, *prices]) + spent
    expected = max((n for n in range(len(prices) + 1) if sums[n] <= limit), default=0)
    assert len(paid) == expected
    assert account.exhausted == (expected < len(prices))


@given(st.lists(st.sampled_from([IDLE, *LOWER, *RESET]), min_size=1, max_size=5))
def test_doing_nothing_at_the_end_makes_no_difference(sequence: list[Intervention]) -> None:
    one = canonical(sequence)
    assert one == canonical([*sequence, IDLE, IDLE]) == canonical(one)
    assert WORLD.delta(one[:4]) == pytest.approx(WORLD.delta(sequence[:4]))
    assert len(one) >= 1
    assert len(one) == 1 or not one[-1].does_nothing
