"""Learning rates to come: step by step where they are near, and for a million steps without a noticeable wait."""

from __future__ import annotations

import pytest

from tests.support.own_runs import config, run_of

FAR = 1_000_000


def test_rates_of_a_short_run_are_those_that_it_takes() -> None:
    run = run_of()
    assert run.lrs_ahead() == [telemetry.lr for telemetry in run.advance(60)]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_rates_far_ahead_follow_the_schedule(kind: str) -> None:
    run = run_of(config=config(steps=FAR, schedule={"kind": kind, "warmup": 100}))
    ahead = run.lrs_ahead()
    assert len(ahead) == FAR
    for step in (0, 50, 19_999, 20_000, 123_456, 700_001, FAR - 1):
        assert ahead[step] == pytest.approx(run.base_lr * run._lr_factor(step), rel=1e-3)


def test_a_schedule_is_asked_for_few_of_a_million_steps() -> None:
    asked: list[int] = []

    def schedule(step: int, progress: float) -> float:
        asked.append(step)
        return 1.0 - progress / 2

    run = run_of(config=config(steps=FAR), schedule=schedule)
    asked.clear()
    assert run.lrs_ahead()[-1] == pytest.approx(run.base_lr / 2, rel=1e-3)
    assert len(asked) < 25_000
