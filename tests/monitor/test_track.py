"""One signal against its history, next to the plain definition computed from the whole past."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainenv.monitor.zscore import BEYOND, Track


def reference(
    values: np.ndarray, window: int, decay: float, least: int, follow: bool
) -> list[float]:  # type: ignore[type-arg]
    """z-scores by the definition, from lists that keep everything."""
    scores, history, average = [0.0], [], float(values[0])
    median = above = below = 0.0
    for value in values[1:].tolist():
        residual = value - average
        z, kept = 0.0, residual
        if len(history) >= least:
            spread = above if residual > median else below
            z = float(np.clip((residual - median) / spread, -100, 100))
            kept = median + float(np.clip(z, -4, 4)) * spread
        history.append(kept)
        if len(history) % 16 == 0 or len(history) == least:
            recent = np.array(history[-window:])
            median = float(np.median(recent))
            mad = 1.4826 * float(np.median(np.abs(recent - median)))
            above = (
                max(mad, (float(np.quantile(recent, 0.98)) - median) / 2.0537489106318225) + 1e-9
            )
            below = (
                max(mad, (median - float(np.quantile(recent, 0.02))) / 2.0537489106318225) + 1e-9
            )
        average += max(1 - decay, 1 / (len(history) + 1)) * (residual if follow else kept)
        scores.append(z)
    return scores


def run(track: Track, values: object) -> list[float]:
    return [track.update(float(value)) for value in values]  # type: ignore[attr-defined]


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize(
    ("window", "decay", "least"), [(64, 0.9, 16), (100, 0.98, 40), (32, 0.5, 32), (512, 0.98, 64)]
)
def test_against_the_definition(window: int, decay: float, least: int, follow: bool) -> None:
    rng = np.random.Generator(np.random.Philox(key=window))
    values = 5 * np.exp(-np.arange(700) / 200) + rng.standard_t(3, 700) * 0.1
    track = Track(window, decay, least, follow=follow)
    np.testing.assert_allclose(
        run(track, values), reference(values, window, decay, least, follow), rtol=1e-6, atol=1e-8
    )


def test_of_normal_noise_the_scores_are_normal() -> None:
    values = np.random.Generator(np.random.Philox(key=1)).normal(3.0, 0.2, 6000)
    scores = np.array(run(Track(512, 0.98, 64), values))[600:]
    assert abs(scores.mean()) < 0.1
    assert scores.std() == pytest.approx(1.0, abs=0.12)
    assert (np.abs(scores) > 4).mean() < 2e-3


def test_silent_while_there_is_too_little_history() -> None:
    values = np.random.Generator(np.random.Philox(key=2)).normal(size=200)
    values[30] = 1e6
    scores = run(Track(64, 0.9, 50), values)
    assert scores[:51] == [0.0] * 51
    assert all(scores[51:])


def test_heavier_upwards_is_judged_for_each_side() -> None:
    rng = np.random.Generator(np.random.Philox(key=3))
    noise = rng.exponential(1.0, 2000)
    up, down = Track(512, 0.98, 64), Track(512, 0.98, 64)
    run(up, noise)
    run(down, noise)
    assert abs(down.update(-6.0)) > 1.5 * up.update(8.0)


@given(
    values=st.lists(st.floats(-1e30, 1e30), max_size=120),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
)
@settings(max_examples=60)
def test_what_is_not_finite_is_beyond_and_leaves_the_history(
    values: list[float], bad: float
) -> None:
    track = Track(32, 0.9, 8)
    run(track, values)
    before = track.state_dict()
    assert track.update(bad) == BEYOND == 100.0
    assert track.state_dict() == before


@given(values=st.lists(st.floats(-3.4e38, 3.4e38), min_size=1, max_size=150), follow=st.booleans())
@settings(max_examples=100)
def test_bounded_whatever_comes(values: list[float], follow: bool) -> None:
    scores = run(Track(32, 0.9, 8, follow=follow), values)
    assert all(-BEYOND <= score <= BEYOND for score in scores)


@pytest.mark.parametrize("cut", [0, 1, 5, 16, 40, 64, 100, 129])
def test_state_goes_on_exactly(cut: int) -> None:
    values = np.random.Generator(np.random.Philox(key=4)).normal(size=300)
    whole = Track(64, 0.95, 20)
    expected = run(whole, values)[cut:]
    first, second = Track(64, 0.95, 20), Track(64, 0.95, 20)
    run(first, values[:cut])
    run(second, values[:7] + 3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert run(second, values[cut:]) == expected
    assert second.state_dict() == whole.state_dict()


def test_a_spike_does_not_hide_the_next() -> None:
    values = np.random.Generator(np.random.Philox(key=5)).normal(2.0, 0.1, 600)
    track = Track(512, 0.98, 64)
    run(track, values)
    for _ in range(5):
        assert track.update(50.0) > 50
        run(track, values[:40])
    assert abs(track.update(2.0)) < 3


def test_following_takes_a_jump_at_once() -> None:
    values = np.random.Generator(np.random.Philox(key=6)).normal(2.0, 0.1, 200)
    follows, winsors = Track(64, 0.5, 16, follow=True), Track(64, 0.5, 16)
    run(follows, values)
    run(winsors, values)
    assert follows.update(4.0) > 10
    assert winsors.update(4.0) > 10
    run(follows, [4.0] * 6)
    assert abs(follows.update(4.0)) < 2
    assert winsors.update(4.0) > 5


def test_a_constant_signal_is_usual() -> None:
    assert run(Track(64, 0.9, 16), [3.0] * 100) == [0.0] * 100
