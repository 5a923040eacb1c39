"""Controls of the draft length: replayed counts against a known replay, and what each does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from trainenv.agents.thresholds.adaptive_choice import CHOICES, best_choice, speeds_of
from trainenv.agents.thresholds.controls import (
    DraftControl,
    FixedThresholds,
    ReplayedSchedule,
    ReplayedStop,
    TargetOnly,
)
from trainenv.agents.thresholds.controls.windows import window_blocks
from trainenv.decoding.schedules import AcceptanceStop, Adaptive, Confidence, Heuristic
from trainenv.decoding.schedules.acceptance_stop import FEATURES, features, fit_acceptance
from trainenv.decoding.schedules.confidence import best_threshold
from trainenv.decoding.traces import CostModel, Settings, SyntheticPair, score, synthetic_trace
from trainenv.types import UserError

TRACE = synthetic_trace(SyntheticPair(), rows=24, positions=96, seed=3)
COSTS = CostModel.of_ratio(0.1, per_token=0.02)


@dataclass(frozen=True)
class Constant:
    """A schedule that never changes."""

    tokens: int

    def begin(self) -> Constant:
        return self

    def ends(self, own: Sequence[float], top: Sequence[float], /) -> bool:
        assert len(own) == len(top) <= self.tokens
        return False

    def update(self, own: Sequence[float], accepted: int, complete: bool, /) -> None:
        assert accepted + (not complete) == len(own)


@pytest.mark.parametrize("k", [1, 4, 16])
def test_blocks_of_a_fixed_length_are_those_of_the_replay(k: int) -> None:
    expected = FixedThresholds(settings=Settings(fallback_threshold=0.0, k=k)).replay(TRACE, COSTS)
    lengths = np.full((TRACE.rows, TRACE.positions), k)
    found = score(window_blocks(TRACE, lengths, lengths), COSTS)
    for name in ("speedup", "acceptance", "tokens_per_call", "drafted_per_call", "wasted"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9)


@pytest.mark.parametrize("k", [2, 8])
def test_sampled_blocks_are_unbiased(k: int) -> None:
    expected = FixedThresholds(settings=Settings(fallback_threshold=0.0, k=k)).replay(TRACE, COSTS)
    found = [
        ReplayedSchedule(schedule=Constant(k), seed=seed, draws=1).replay(TRACE, COSTS)
        for seed in range(40)
    ]
    for name in ("time_per_token", "tokens_per_call", "acceptance"):
        values = np.array([getattr(each, name) for each in found])
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - getattr(expected, name)) < 4 * error + 1e-3


def test_the_threshold_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(0)
    for _ in range(200):
        size = int(rng.integers(6, 60))
        probabilities = rng.random(size).round(2)
        matches = rng.random(size) < probabilities
        if matches.all() or not matches.any():
            continue
        wrong, right, thresholds = roc_curve(matches, probabilities)
        costs = wrong + 3 * (1 - right)
        found = best_threshold(probabilities.tolist(), matches.tolist())
        place = int(np.flatnonzero(thresholds == found)[0]) if found in thresholds else None
        assert place is not None
        assert costs[place] == pytest.approx(costs.min())


def test_the_heuristic_adds_two_and_takes_one() -> None:
    seen = []
    state = Heuristic(most=8).begin()
    for complete in (True, True, False, False, False, False, False, False, False, False, True):
        state.update([], 0, complete)
        seen.append(state.tokens)
    assert seen == [7, 8, 7, 6, 5, 4, 3, 2, 1, 1, 3]


def test_the_adaptive_length_is_the_best_for_the_estimate() -> None:
    """Against the replay of constant lengths on a pair with a constant overlap of α."""
    ratio = 0.1
    lengths = np.arange(1, 17)
    for alpha in (0.2, 0.5, 0.8, 0.95):
        speed = (1 - alpha ** (lengths + 1)) / (1 - alpha) / (1 + ratio * lengths)
        schedule = Adaptive.of(CostModel.of_ratio(ratio), memory=0.5, threshold=0.0, start=alpha)
        state = schedule.begin()
        assert state.tokens == lengths[speed.argmax()]
    state.update([0.5, 0.5], 1, False)
    assert state.estimate == pytest.approx((0.95 * 0.5 + 0.5) * 0.5)


def test_an_adaptive_length_beats_fixed_ones_where_passages_differ() -> None:
    easy = synthetic_trace(SyntheticPair(noise=0.1, sharpness=3.0), rows=8, positions=96)
    hard = synthetic_trace(SyntheticPair(noise=2.5, sharpness=3.0), rows=8, positions=96)
    trace = type(easy).joined([easy, hard])
    costs = CostModel.of_ratio(0.15)
    settings = [Settings(fallback_threshold=0.0, k=k) for k in range(1, 17)]
    fixed = max(FixedThresholds(settings=s).replay(trace, costs).speedup for s in settings)
    chosen = best_choice(speeds_of(trace, costs, 16)[None])
    schedule = chosen.schedule(costs, start=trace.acceptance, most=16)
    assert ReplayedSchedule(schedule=schedule).replay(trace, costs).speedup > 1.05 * fixed


def test_the_choice_is_the_best_share_over_tasks() -> None:
    speeds = np.ones((2, len(CHOICES)))
    speeds[0, 3] = 10.0  # the best of one task, bad for the other
    speeds[1, 3] = 0.1
    speeds[:, 5] = (9.5, 0.99)
    assert best_choice(speeds) == CHOICES[5]


def test_the_predictor_is_calibrated_and_better_than_the_mean() -> None:
    weights = np.array(fit_acceptance(TRACE))
    other = synthetic_trace(SyntheticPair(), rows=24, positions=96, seed=4)
    inputs = features(other.block_q, other.block_top)
    chance = 1 / (1 + np.exp(-inputs @ weights))
    truth = np.exp(np.minimum(other.block_p.astype(float) - other.block_q.astype(float), 0))
    assert inputs.shape[-1] == FEATURES
    assert chance.mean() == pytest.approx(truth.mean(), abs=0.01)
    assert ((chance - truth) ** 2).mean() < 0.9 * truth.var()


def stopping(weights: tuple[float, ...], threshold: float, k: int) -> ReplayedStop:
    return ReplayedStop(stop=AcceptanceStop(weights=weights, threshold=threshold, k=k))


def test_a_sampled_stop_agrees_with_the_expected_one() -> None:
    """Two replays of one rule: block by block as in the decoder, and in expectation."""
    control = stopping(fit_acceptance(TRACE), 0.5, 8)
    expected = control.replay(TRACE, COSTS)
    found = ReplayedSchedule(schedule=control.stop, draws=20).replay(TRACE, COSTS)
    assert found.tokens_per_call == pytest.approx(expected.tokens_per_call, rel=0.02)
    assert found.time_per_token == pytest.approx(expected.time_per_token, rel=0.02)


def test_a_stop_that_never_comes_is_a_fixed_length() -> None:
    weights = fit_acceptance(TRACE)
    never = stopping(weights, 1.0, 6).replay(TRACE, COSTS)
    fixed = FixedThresholds(settings=Settings(fallback_threshold=0.0, k=6)).replay(TRACE, COSTS)
    assert never.speedup == pytest.approx(fixed.speedup, rel=1e-9)
    at_once = stopping(weights, 0.0, 6).replay(TRACE, COSTS)
    one = FixedThresholds(settings=Settings(fallback_threshold=0.0, k=1)).replay(TRACE, COSTS)
    assert at_once.speedup == pytest.approx(one.speedup, rel=1e-9)


def test_a_good_stop_beats_every_fixed_length() -> None:
    pair = SyntheticPair(sharpness=3.0, noise=0.7)
    trace = synthetic_trace(pair, rows=24, positions=96, seed=5)
    costs = CostModel.of_ratio(0.15)
    weights = fit_acceptance(synthetic_trace(pair, rows=24, positions=96, seed=6))
    stops = [stopping(weights, h / 10, 16) for h in range(3, 10)]
    fixed = [FixedThresholds(settings=Settings(fallback_threshold=0.0, k=k)) for k in range(1, 17)]

    def best(controls: list[DraftControl]) -> float:
        return max(control.replay(trace, costs).speedup for control in controls)

    assert best([*stops]) > 1.01 * best([*fixed])


@pytest.mark.parametrize(
    "control",
    [
        ReplayedSchedule(schedule=Heuristic(), lasting=True),
        ReplayedSchedule(schedule=Confidence()),
        TargetOnly(),
    ],
)
def test_a_replay_is_the_same_to_the_bit(control: DraftControl) -> None:
    assert isinstance(control, DraftControl)
    assert control.replay(TRACE, COSTS) == control.replay(TRACE, COSTS)


def test_the_target_alone_has_no_speedup() -> None:
    found = TargetOnly().replay(TRACE, COSTS)
    assert (found.speedup, found.tokens_per_call, found.distance) == (1.0, 1.0, 0.0)


def test_a_depth_that_the_trace_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="depth"):
        stopping(fit_acceptance(TRACE), 0.5, 17).replay(TRACE, COSTS)
