"""PBT: who is replaced by whom, what is explored, what is charged; PB2's process and choice; AutoLRS."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.config.schema import InterventionConfig
from trainenv.interventions import ActionCodec
from trainenv.planners.autolrs import AutoLRS, extrapolated
from trainenv.planners.pbt import PBT, perturbed, tuned_only
from trainenv.planners.support.pb2_explore import (
    Improvements,
    choose_change,
    features,
    time_varying,
)
from trainenv.planners.support.sequences import NOTHING
from trainenv.planners.testing import START, ToyWorld, watched
from trainenv.tools.gaussian_process import fit, squared_exponential
from trainenv.types import Budget, Intervention, Outcome

IDLE = Intervention()


# ── PBT ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_generations_go_on_from_each_other_and_all_steps_are_charged() -> None:
    problem, _, executor = watched(ToyWorld(seed=1).problem(1))
    plan = PBT(population=8, generations=4).plan(problem)
    calls = executor.executor.calls  # type: ignore[attr-defined]
    assert [steps for _, steps, _ in calls] == [50, 100, 150, 200]
    assert plan.cost.steps == executor.steps
    assert plan.cost.futures == 0
    new = sum(
        count * (50 + 20) for count, _, _ in calls
    )  # each generation trains 50 more, and cools down for 20
    assert executor.steps <= new
    assert all(len(one.interventions) <= 4 for one in plan.candidates)


def test_the_worst_quarter_is_replaced_by_copies_of_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With exploring switched off, what is replaced turns into what is best."""
    monkeypatch.setattr("trainenv.planners.pbt.perturbed", lambda problem, masks, resample: IDLE)
    world = ToyWorld(seed=1)
    plan = PBT(population=8, generations=2).plan(world.problem(1))
    replaced = [one for one in plan.dropped if one.reason == "replaced after decision 1"]
    assert len(replaced) == 2
    first = {one.interventions: one.outcomes[0] for one in plan.candidates}
    losses = [math.inf if outcome.diverged else outcome.annealed for outcome in first.values()]
    for one in replaced:
        assert one.outcomes[0].diverged or one.outcomes[0].annealed >= max(
            loss for loss in losses if loss < math.inf
        )
    assert (
        len(plan.candidates) == 6
    )  # the copies are the same sequences as what they were copied from
    assert all(len(one.outcomes) == 2 for one in plan.candidates)


def test_exploring_moves_to_a_neighbour_or_draws_anew() -> None:
    world = ToyWorld()
    problem, masks = world.problem(5), tuned_only(world.codec.masks(START))
    moved = [perturbed(problem, masks, 0.0) for _ in range(400)]
    assert {done.lr_scale for done in moved} == {0.9, 1.1}
    assert {done.weight_decay_scale for done in moved} == {0.5, 2.0}
    assert {done.clip for done in moved} == {None}
    up = np.mean([done.lr_scale > 1 for done in moved])
    assert up == pytest.approx(0.5, abs=0.08)
    drawn = [perturbed(problem, masks, 1.0) for _ in range(800)]
    for part, count in (("lr_scale", 4), ("weight_decay_scale", 3), ("clip", 3)):
        values = [getattr(done, part) for done in drawn]
        assert len(set(values)) == count
        assert max(values.count(value) for value in set(values)) < 1.4 * len(values) / count
    assert not any(
        done.momentum_reset or done.data_reorder or done.skip_batch for done in (*moved, *drawn)
    )
    some = [perturbed(problem, masks, 0.25) for _ in range(1000)]
    assert np.mean([done.lr_scale in (0.8, 1.0) for done in some]) == pytest.approx(
        0.25 * 0.5, abs=0.03
    )


def test_exploring_stays_within_bounds() -> None:
    """A factor that would pass the bound is masked, so the rate stays."""
    codec = ActionCodec(InterventionConfig(lr_bounds=(0.95, 10.0)))
    problem = ToyWorld(codec=codec).problem(1)
    masks = tuned_only(codec.masks(START))
    assert {perturbed(problem, masks, 0.0).lr_scale for _ in range(50)} == {1.0, 1.1}


def test_a_generation_that_cannot_be_paid_is_not_begun() -> None:
    problem, _, executor = watched(ToyWorld(seed=1).problem(1, budget=Budget(steps=900)))
    plan = PBT(population=8, generations=4).plan(problem)
    assert [count for count, _, _ in executor.executor.calls] == [8]  # type: ignore[attr-defined]
    assert not plan.complete
    assert executor.steps == 8 * 70


def test_pbt_finds_sequences_that_no_single_intervention_reaches() -> None:
    gains = []
    for seed in range(6):
        world = ToyWorld(seed=seed)
        problem = world.problem(seed)
        plan = PBT(population=24, generations=4).plan(problem)
        gains.append(world.best(problem) - world.delta(plan.best.interventions))
        assert plan.best.score == pytest.approx(world.delta(plan.best.interventions), abs=1e-6)
    assert np.mean(gains) > 0


# ── PB2 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 8), width=st.sampled_from([0.5, 1.0, 2.0]))
def test_the_process_is_the_textbook_s(seed: int, n: int, width: float) -> None:
    rng = np.random.default_rng(seed)
    points, values, asked = (
        rng.standard_normal((n, 2)),
        3 + 2 * rng.standard_normal(n),
        rng.standard_normal((5, 2)),
    )
    mean, std = fit(points, values, widths=(width,), noise=0.1).at(asked)
    scale = values.std() or 1.0
    inverse = np.linalg.inv(squared_exponential(points, points, width) + 0.1 * np.eye(n))
    cross = squared_exponential(asked, points, width)
    assert mean == pytest.approx(
        values.mean() + cross @ inverse @ (values - values.mean()), abs=1e-8
    )
    assert std**2 == pytest.approx(
        scale**2 * (1 - np.einsum("ai,ij,aj->a", cross, inverse, cross)), abs=1e-8
    )


def test_the_width_is_the_most_likely() -> None:
    points = np.linspace(0, 4, 30)[:, None]
    assert fit(points, np.sin(points[:, 0])).width in (1.0, 2.0)
    assert fit(points, np.sin(8 * points[:, 0])).width == 0.25


def test_old_observations_count_less() -> None:
    a = np.array([[0.0, 1.0], [4.0, 1.0]])
    assert time_varying(a, a, 1.0) == pytest.approx(np.array([[1.0, 0.9**2], [0.9**2, 1.0]]))


def test_features_are_what_is_in_force() -> None:
    member = (
        Intervention(lr_scale=0.8, clip="arc"),
        Intervention(lr_scale=1.1, weight_decay_scale=2.0),
        IDLE,
    )
    time, start, rate, decay, *clips = features(3, -0.1, member)
    assert (time, start) == (3.0, -0.1)
    assert (rate, decay) == pytest.approx((math.log(0.88), math.log(2.0)))
    assert clips == [0.0, 0.0, 1.0, 0.0]


def test_pb2_chooses_what_has_improved_most_and_then_something_else() -> None:
    seen = Improvements()
    scales = (0.8, 0.9, 1.0, 1.1)
    for _ in range(6):
        members = [(Intervention(lr_scale=scale),) for scale in scales]
        seen.add(
            0, 1, [0.0] * 4, [0.1 * math.log(scale) for scale in scales], members
        )  # lower is better, by far
    legal = [Intervention(lr_scale=scale) for scale in (1.0, 0.8, 0.9, 1.1)]
    first = choose_change(seen, 0, 0.0, (), legal, [])
    assert first.lr_scale == 0.8
    assert choose_change(Improvements(), 0, 0.0, (), legal, []) == legal[0]
    seen.add(0, 1, [0.0, math.inf], [math.inf, 0.0], [NOTHING, NOTHING])
    assert len(seen.gains) == 24  # what is not finite teaches nothing


def test_a_copy_already_chosen_makes_room_for_another() -> None:
    """With nothing to choose between means, the uncertainty decides, and a pending copy takes it away."""
    seen = Improvements()
    seen.add(0, 1, [0.0, 0.0], [0.0, 0.0], [NOTHING, (Intervention(weight_decay_scale=2.0),)])
    seen.add(1, 1, [0.0, 0.0], [1e-9, 0.0], [(Intervention(lr_scale=0.99),), NOTHING])
    legal = [IDLE, Intervention(lr_scale=0.8), Intervention(lr_scale=1.1)]
    first = choose_change(seen, 2, 0.0, (), legal, [])
    second = choose_change(seen, 2, 0.0, (), legal, [(0.0, (first,))] * 3)
    assert first != second


# ── AutoLRS ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=30, deadline=None)
@given(a=st.floats(0.1, 2), rate=st.floats(0.5, 8), c=st.floats(1, 4), looks=st.integers(5, 30))
def test_an_exponential_is_found_again(a: float, rate: float, c: float, looks: int) -> None:
    steps = np.linspace(0, 100, looks)
    losses = a * np.exp(-rate * steps / 100) + c
    truth = max(a * math.exp(-rate * 10) + c, 0.5 * losses[-1])
    assert extrapolated(steps, losses, 1000) == pytest.approx(truth, abs=0.03 * a)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([3.0, 2.9, 2.8], 2.8), ([3.0, 3.1, 3.2, 3.3], 3.3), ([3.0, math.nan, 2.9, 2.9], 2.9)],
)
def test_what_cannot_be_fitted_stays_as_it_is(losses: list[float], expected: float) -> None:
    assert extrapolated(range(len(losses)), losses, 100) == expected


def test_a_fit_never_promises_more_than_half_of_the_loss() -> None:
    assert extrapolated(range(6), 3.0 - 0.2 * np.arange(6), 1000) >= 1.0


def test_autolrs_tries_rates_alone_each_for_a_tenth() -> None:
    problem, _, executor = watched(ToyWorld(seed=1).problem(1))
    plan = AutoLRS(stage=4).plan(problem)
    assert {one[0] for one in executor.asked} == {
        Intervention(lr_scale=scale) for scale in (1.0, 0.8, 0.9, 1.1)
    }
    assert {steps for _, steps, _ in executor.executor.calls} == {20}  # type: ignore[attr-defined]
    assert plan.cost.steps == 4 * 20  # no cool-down: it judges by the raw loss


def test_autolrs_finds_the_best_of_many_rates_with_few_tries() -> None:
    """The loss at τ is a parabola in ln(rate); ten tries of 33 rates come close to its bottom."""
    config = InterventionConfig(lr_scales=(1.0, *(float(f) for f in np.geomspace(0.1, 10, 32))))
    world = ToyWorld(codec=ActionCodec(config))
    tried: list[float] = []

    class Parabola:
        def cost(self, sequences, steps, /, *, measure, draw=0):  # type: ignore[no-untyped-def]
            raise AssertionError("no limit, so nobody asks")

        def run(self, sequences, steps, /, *, measure, draw=0):  # type: ignore[no-untyped-def]
            logs = [math.log(sequence[0].lr_scale) for sequence in sequences]
            tried.extend(logs)
            return [
                Outcome(
                    looks=(0, steps), validation=(3.0, 2.5 + 0.1 * (log - 0.9) ** 2), steps=steps
                )
                for log in logs
            ]

    plan = AutoLRS().plan(replace(world.problem(1), executor=Parabola()))  # type: ignore[arg-type]
    assert len(tried) == 10
    assert abs(math.log(plan.best.interventions[0].lr_scale) - 0.9) < 0.2
