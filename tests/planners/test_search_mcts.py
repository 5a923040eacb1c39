"""The planner on top of the search: the contract in all its variants, and what it finds that one-step planners cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from trainenv.interventions import ActionCodec
from trainenv.planners.grid import Grid
from trainenv.planners.mcts import MCTS
from trainenv.planners.testing import CHECKS, ToyModel, ToyWorld, watched
from trainenv.types import (
    Budget,
    Forecast,
    Inference,
    Intervention,
    PlanningProblem,
    RunHistory,
    UserError,
)

VARIANTS = (
    MCTS(variant="puct"),
    MCTS(rank_by="forecast", simulations=30),
    MCTS(reuse=True, gumbel_scale=1.0),
)
CODEC = ActionCodec()
FIRST, THEN = Intervention(momentum_reset=True), Intervention(lr_scale=1.1)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("planner", VARIANTS, ids=["puct", "forecast", "reuse"])
def test_contract(planner: MCTS, check: Any) -> None:
    check(planner)


# ── two interventions that help only together ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Combination:
    """A world where a bare momentum reset costs 0.02 nats a decision until the rate is raised, which then gains 0.1.

    All else costs 0.02 but doing nothing in the beginning. latent: 1 after a reset, else 0. Values and policy know nothing.
    """

    def steps(self, sequence: Sequence[Intervention]) -> list[float]:
        """Falls of ln loss, one a decision."""
        falls, ready = [], False
        for done in sequence:
            falls.append(
                0.1 if ready and done == THEN else 0.0 if not ready and done.does_nothing else -0.02
            )
            ready = done == FIRST or (ready and done != THEN)
        return falls

    def forecast(self, history: RunHistory, interventions: Sequence[Any], /) -> list[Forecast]:
        toy = ToyModel(ToyWorld(unsafe=None)).forecast(history, [Intervention()])[0]
        sequences = [(one,) if isinstance(one, Intervention) else one for one in interventions]
        deltas = [-sum(self.steps(sequence)) for sequence in sequences]
        estimates = [
            replace(toy.annealed, mean=delta, median=delta, low=delta - 0.01, high=delta + 0.01)
            for delta in deltas
        ]
        return [
            replace(toy, horizon=one, annealed=one, final=one, divergence=0.0) for one in estimates
        ]

    def initial_inference(self, histories: Sequence[RunHistory], /) -> Inference:
        return self._inference(np.zeros((len(histories), 1)), np.zeros(len(histories)))

    def recurrent_inference(self, latent: np.ndarray, actions: np.ndarray, /) -> Inference:
        done = [CODEC.decode(action) for action in actions]
        before = [[FIRST] if ready else [Intervention()] for ready in latent[:, 0]]
        rewards = [self.steps([*was, now])[-1] for was, now in zip(before, done)]
        ready = [
            [now == FIRST or (was == [FIRST] and now != THEN)] for was, now in zip(before, done)
        ]
        return self._inference(np.array(ready), np.array(rewards))

    def _inference(self, latent: np.ndarray, rewards: np.ndarray) -> Inference:
        zeros = np.zeros((len(latent), sum(CODEC.sizes)), dtype=np.float32)
        return Inference(latent.astype(np.float32), rewards.astype(np.float32), zeros[:, 0], zeros)


@pytest.mark.parametrize("options", [{}, {"rank_by": "forecast"}], ids=["search", "forecast"])
def test_finds_two_interventions_that_must_be_combined_where_one_step_planners_do_nothing(
    options: Any,
) -> None:
    allowed = tuple(np.arange(size) == 0 for size in CODEC.sizes)
    allowed[0][CODEC.encode(THEN)[0]] = allowed[3][1] = True
    for seed in range(6):
        problem = ToyWorld().problem(seed, model=Combination(), masks=allowed, masks_after=None)
        found = MCTS(depth=2, **options).plan(problem).best
        assert found.interventions == (FIRST, THEN)
        assert found.score == pytest.approx(-0.08, abs=1e-6)
        assert Grid().plan(problem).best.does_nothing


# ── what a plan says ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variant", ["gumbel", "puct"])
def test_scores_are_the_models_returns_of_the_sequences_themselves(variant: Any) -> None:
    for seed in range(8):
        world = ToyWorld(seed=seed)
        plan = MCTS(variant=variant).plan(world.problem(seed))
        assert plan.complete
        firsts = [
            candidate.interventions[0]
            for candidate in plan.candidates
            if not candidate.does_nothing
        ]
        assert len(set(firsts)) == len(firsts)
        assert len(firsts) in (
            15,
            16,
        )  # 16 where waiting for something is worth being listed beside doing nothing
        for candidate in plan.candidates:
            if not world.diverges(candidate.interventions):
                assert candidate.score == pytest.approx(
                    world.delta(candidate.interventions), abs=1e-5
                )
        assert not world.diverges(plan.best.interventions)
        shown = [candidate for candidate in plan.candidates if candidate.forecast is not None]
        assert len(shown) == 7
        assert plan.control in shown
        assert plan.best in shown


def test_what_later_masks_forbid_is_not_searched() -> None:
    once = tuple(np.arange(size) == 0 for size in CODEC.sizes)

    def after(sequence: Sequence[Intervention]) -> Any:
        return (
            once if any(not done.does_nothing for done in sequence) else ToyWorld().problem().masks
        )

    plan = MCTS().plan(ToyWorld(seed=1).problem(1, masks_after=after))
    assert not plan.dropped
    for candidate in plan.candidates:
        assert sum(not done.does_nothing for done in candidate.interventions) <= 1


def test_proposals_are_candidates() -> None:
    odd = Intervention(lr_scale=0.8, weight_decay_scale=2.0, clip="arc", momentum_reset=True)
    late = Intervention(lr_scale=0.9, clip="arc", momentum_reset=True)
    problem = ToyWorld().problem(0, proposals=[(odd,), (Intervention(), late)])
    planner = MCTS(considered=3, simulations=12)
    firsts = {candidate.interventions[0] for candidate in planner.plan(problem).candidates}
    assert {odd, late, Intervention()} <= firsts


def test_candidates_are_sampled_from_the_models_policy() -> None:
    @dataclass(frozen=True)
    class Keen(ToyModel):
        def _inference(self, latent: Any, rewards: Any) -> Inference:
            found = super()._inference(latent, rewards)
            found.logits[:, 1] = 30.0  # lr × 0.8
            return found

    problem = ToyWorld().problem(3, model=Keen(ToyWorld()))
    plan = MCTS(considered=8, simulations=20).plan(problem)
    assert {
        done.interventions[0].lr_scale
        for done in plan.candidates
        if not done.interventions[0].does_nothing
    } == {0.8}


def test_the_pruner_is_asked_before_the_model() -> None:
    class NoReset:
        def hopeless(
            self, history: RunHistory, sequences: Sequence[Sequence[Intervention]], /
        ) -> list[str]:
            return [
                "resets" if any(done.momentum_reset for done in sequence) else ""
                for sequence in sequences
            ]

    plan = MCTS(depth=1).plan(ToyWorld().problem(0, pruner=NoReset()))
    assert plan.dropped
    assert {one.reason for one in plan.dropped} == {"resets"}
    assert not any(done.momentum_reset for one in plan.candidates for done in one.interventions)


def test_a_small_budget_goes_to_simulations_first() -> None:
    for futures, forecasts in ((20, 0), (51, 0), (52, 0), (53, 2), (60, 7)):
        problem, model, _ = watched(ToyWorld(seed=1).problem(1, budget=Budget(futures=futures)))
        plan = MCTS().plan(problem)
        assert len(model.asked) == forecasts
        assert plan.cost.futures == model.futures <= futures
        assert plan.complete == (futures >= 51)


# ── going on from the last plan ─────────────────────────────────────────────────────────────────────────────────────


def next_problem(
    problem: PlanningProblem, plan: Any, taken: Intervention, **changes: Any
) -> PlanningProblem:
    return replace(
        problem, previous=plan, taken=taken, generator=np.random.default_rng(9), **changes
    )


def test_reuse_goes_on_from_the_tree_below_what_was_done() -> None:
    problem = ToyWorld(seed=2).problem(2)
    planner = MCTS(reuse=True)
    first = planner.plan(problem)
    memory = first.memory
    column = int(memory.tree.visits[0, 0].argmax())
    taken, kept = memory.states.interventions[column], int(memory.tree.visits[0, 0, column]) - 1
    assert kept > 0
    again = planner.plan(next_problem(problem, first, taken))
    assert again.memory.tree.visits[0, 0].sum() == kept + 50
    assert again.cost.futures == first.cost.futures
    tried = memory.tree.visits[0, memory.tree.children[0, 0, column]] > 0
    assert (again.memory.states.vectors[tried] == memory.states.vectors[tried]).all()
    assert (again.memory.states.vectors != memory.states.vectors).any()
    assert len(again.memory.states.states) == kept + 1 + 51  # what was not below is forgotten
    fresh = planner.plan(next_problem(problem, None, taken))
    assert fresh.memory.tree.visits[0, 0].sum() == 50
    assert MCTS().plan(problem).memory is None


def test_reuse_needs_a_tree_below_what_was_done_and_obeys_the_masks_of_now() -> None:
    problem = ToyWorld(seed=2).problem(2)
    planner = MCTS(reuse=True)
    first = planner.plan(problem)
    elsewhere = Intervention(lr_scale=0.8, weight_decay_scale=0.5, clip="arc", data_reorder=True)
    for taken in (elsewhere, None):
        assert (
            planner.plan(next_problem(problem, first, taken)).memory.tree.visits[0, 0].sum() == 50
        )  # type: ignore[arg-type]
    column = int(first.memory.tree.visits[0, 0].argmax())
    masks = tuple(mask.copy() for mask in problem.masks)
    masks[0][1:] = False
    changed = next_problem(
        problem, first, first.memory.states.interventions[column], masks=masks, masks_after=None
    )
    again = planner.plan(changed)
    assert all(
        done.lr_scale == 1.0 for candidate in again.candidates for done in candidate.interventions
    )
    assert not again.dropped


def test_wrong_hyperparameters_are_told() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"variant": "gumble"}, "gumbel"),
        ({"simulations": 0}, "simulations"),
        ({"considered": 1}, "considered"),
        ({"depth": 0}, "depth"),
        ({"discount": 1.1}, "discount"),
        ({"rank_by": "forecast", "depth": 5}, "depth"),
    ]
    for options, match in wrong:
        with pytest.raises(UserError, match=match):
            MCTS(**options)
