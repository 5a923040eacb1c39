"""Schedules over a budget that may shrink: continuous, monotone, and annealed at whatever turns out to be the end."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainenv.config.schema import ScheduleConfig
from trainenv.training.schedules import Constant, Cosine, Horizon, WarmupStableDecay, make
from trainenv.types import Schedule

spends = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 80)), max_size=8)


def spent(horizon: Horizon, spends: list[tuple[int, int]]) -> tuple[Horizon, int]:
    """The horizon after going on and spending in turn, and the step it was at."""
    step = 0
    for onward, steps in spends:
        step = min(step + onward, max(step, horizon.end))
        horizon = horizon.spend(step, steps)
    return horizon, step


def test_progress_without_spending() -> None:
    horizon = Horizon(end=100, since=20)
    assert [horizon.progress(step) for step in (0, 20, 60, 99, 100, 1000)] == [
        0,
        0,
        0.5,
        79 / 80,
        1,
        1,
    ]


@given(warmup=st.integers(0, 50), steps=st.integers(1, 300), spends=spends)
def test_progress_is_monotone_within_bounds_and_ends_at_one(
    warmup: int, steps: int, spends: list[tuple[int, int]]
) -> None:
    horizon, step = Horizon(end=steps, since=min(warmup, steps)), 0
    values = [horizon.progress(0)]
    for onward, cost in [*spends, (400, 0)]:
        for _ in range(onward):
            if step >= horizon.end:
                break
            step += 1
            values.append(horizon.progress(step))
        horizon = horizon.spend(step, cost)
    assert all(0 <= value <= 1 for value in values)
    assert all(before <= after + 1e-12 for before, after in pairwise(values))
    assert step == horizon.end
    assert horizon.progress(horizon.end) == 1.0
    if horizon.end > horizon.since:
        assert horizon.progress(horizon.end - 1) < 1.0


@given(steps=st.integers(2, 300), step=st.integers(0, 299), cost=st.integers(0, 400), before=spends)
def test_spending_is_continuous_and_brings_the_end_nearer(
    steps: int, step: int, cost: int, before: list[tuple[int, int]]
) -> None:
    horizon, at = spent(Horizon(end=steps), before)
    step = min(max(step, at), horizon.end)
    after = horizon.spend(step, cost)
    assert after.end == max(step, horizon.end - cost)
    if after.end > step:
        assert after.progress(step) == horizon.progress(step)
        for later in range(step, after.end + 1):
            assert after.progress(later) >= horizon.progress(later) - 1e-12


def test_spending_nothing_changes_nothing() -> None:
    horizon = Horizon(end=100, since=10)
    after = horizon.spend(40, 0)
    assert [after.progress(s) for s in range(40, 101)] == pytest.approx(
        [horizon.progress(s) for s in range(40, 101)], abs=1e-12
    )


def test_spending_during_the_warm_up_leaves_the_annealing_for_after_it() -> None:
    after = Horizon(end=100, since=20).spend(5, 30)
    assert (after.end, after.since, after.done) == (70, 20, 0.0)


def test_spending_everything_ends_now() -> None:
    after = Horizon(end=100, since=20).spend(50, 10_000)
    assert after.end == 50
    assert after.progress(50) == 1.0


def test_state_round_trip() -> None:
    horizon = Horizon(end=100, since=20).spend(33, 7)
    assert Horizon(**horizon.state_dict()) == horizon


@given(
    kind=st.sampled_from(["cosine", "wsd"]),
    final=st.floats(0, 1),
    share=st.floats(0.01, 1),
    spends=spends,
)
def test_the_end_is_annealed_whatever_was_spent(
    kind: str, final: float, share: float, spends: list[tuple[int, int]]
) -> None:
    schedule = make(ScheduleConfig(kind=kind, warmup=5, final=final, decay_share=share))  # type: ignore[arg-type]
    horizon, step = spent(Horizon(end=200, since=5), spends)
    end = max(horizon.end, 5)
    assert schedule(end, horizon.progress(max(end, step))) == pytest.approx(final, abs=1e-12)


@given(kind=st.sampled_from(["cosine", "wsd"]), final=st.floats(0, 1), share=st.floats(0.01, 1))
def test_annealing_only_falls_from_one_to_final(kind: str, final: float, share: float) -> None:
    schedule = make(ScheduleConfig(kind=kind, warmup=0, final=final, decay_share=share))  # type: ignore[arg-type]
    values = [schedule(0, n / 500) for n in range(501)]
    assert values[0] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(final, abs=1e-12)
    assert all(before >= after - 1e-12 for before, after in pairwise(values))


def test_cosine_by_its_formula() -> None:
    schedule = Cosine(warmup=0, final=0.1)
    for n in range(11):
        assert schedule(50, n / 10) == pytest.approx(
            0.1 + 0.9 * (1 + math.cos(math.pi * n / 10)) / 2
        )
    assert schedule(50, 0.5) == pytest.approx(0.55)


def test_wsd_is_flat_then_one_minus_root() -> None:
    schedule = WarmupStableDecay(warmup=0, final=0.2, decay_share=0.25)
    assert [schedule(0, p) for p in (0, 0.3, 0.75)] == [1.0, 1.0, 1.0]
    assert schedule(0, 0.75 + 0.25 * 0.25) == pytest.approx(1 - 0.8 * 0.5)
    assert schedule(0, 1.0) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "schedule",
    [
        Cosine(warmup=8, final=0.1),
        WarmupStableDecay(warmup=8, final=0.1, decay_share=0.2),
        Constant(warmup=8),
    ],
)
def test_warm_up_is_linear(schedule: Schedule) -> None:
    assert [schedule(step, 0.0) for step in range(10)] == pytest.approx(
        [(step + 1) / 8 for step in range(8)] + [1.0, 1.0]
    )


def test_constant_stays() -> None:
    assert {
        Constant(warmup=0)(step, progress) for step in (0, 10) for progress in (0.0, 0.5, 1.0)
    } == {1.0}


def test_make_takes_each_number_from_the_configuration() -> None:
    assert make(ScheduleConfig(warmup=3, final=0.2)) == Cosine(warmup=3, final=0.2)
    assert make(
        ScheduleConfig(kind="wsd", warmup=3, final=0.2, decay_share=0.4)
    ) == WarmupStableDecay(warmup=3, final=0.2, decay_share=0.4)
    assert make(ScheduleConfig(kind="constant", warmup=3)) == Constant(warmup=3)
