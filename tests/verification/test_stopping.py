"""The sequential test that stops clear losers: it finds planted ones, and noise hardly ever sets it off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainenv.types import Telemetry, UserError
from trainenv.verification.early_stopping import Losing, paired


def telemetry(losses: Sequence[float]) -> list[Telemetry]:
    known: dict[str, Any] = {
        "tokens": 1,
        "grad_norm": 1.0,
        "grad_norm_clipped": 1.0,
        "clip_threshold": math.inf,
    }
    known |= {
        "clip_score": 0.0,
        "clip": "none",
        "lr": 1e-3,
        "lr_scale": 1.0,
        "weight_decay": 0.0,
        "weight_decay_scale": 1.0,
    }
    known |= {"steps_since_reset": -1, "progress": 0.0}
    return [
        Telemetry(step=place + 1, data_index=place, loss=float(loss), **known)
        for place, loss in enumerate(losses)
    ]


def stopped_at(test: Losing, differences: Sequence[float], looks: Sequence[int]) -> int | None:
    """The look that stops a branch with these differences."""
    control = telemetry(np.full(len(differences), 2.0))  # type: ignore[arg-type]
    branch = telemetry(2.0 * np.exp(np.asarray(differences)))  # type: ignore[arg-type]
    return next((look for look in looks if test(branch[:look], control[:look])), None)


def test_a_planted_loser_is_stopped_at_the_first_look_that_can_tell() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 40)
    assert stopped_at(Losing(), 0.5 + noise, (10, 20, 30)) == 10
    said = Losing()(telemetry([4.0, 4.1, 4.0]), telemetry([2.0, 2.0, 2.0]))
    assert said.startswith("stopped after 3 steps: it clearly loses (+0.70")


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("steps", [7, 12, 50])
def test_noise_is_stopped_more_rarely_than_alpha(sigma: float, steps: int) -> None:
    """On the very edge, a branch that loses as much as counts as losing, all looks together stay below α."""
    alpha, runs, quarter = 0.05, 4000, max(1, steps // 4)
    looks = [look for look in range(quarter, steps, quarter) if look >= 3]
    differences = np.random.default_rng(steps).normal(0.02, sigma, (runs, steps))
    hit = np.zeros(runs, dtype=bool)
    for look in looks:  # as `Losing` computes it, for all runs at once; below, that it is this
        seen = differences[:, :look]
        error = seen.std(axis=1, ddof=1) / math.sqrt(look)
        hit |= seen.mean(axis=1) - stats.t.ppf(1 - alpha / 4, look - 1) * error > 0.02
    assert hit.mean() <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    test = Losing(alpha=alpha)
    assert [stopped_at(test, row, looks) is not None for row in differences[:60]] == hit[
        :60
    ].tolist()


def test_never_on_two_steps() -> None:
    for steps in (0, 1, 2):
        assert Losing(alpha=0.9)(telemetry([9.0] * steps), telemetry([1.0] * steps)) == ""


@given(st.lists(st.floats(-1, 0.02), min_size=3, max_size=20))
def test_what_does_not_lose_at_any_step_is_never_stopped(differences: list[float]) -> None:
    assert stopped_at(Losing(loss=0.021), differences, range(1, 21)) is None


def test_paired_statistics() -> None:
    found = paired([2.0, 4.0, math.nan, 8.0, 1.0], [1.0, 1.0, 1.0, math.inf])
    assert found is not None
    assert found.mean == pytest.approx(1.5 * math.log(2))
    assert found.error == pytest.approx(0.5 * math.log(2))
    assert found.steps == 2
    assert paired([], [1.0]) is None
    assert paired([math.nan, 0.0, -1.0], [1.0, 1.0, 1.0]) is None
    one = paired([2.0], [1.0])
    assert one is not None
    assert one.error == math.inf


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=2, max_size=30))
def test_paired_is_antisymmetric(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs)
    one, two = paired(ours, theirs), paired(theirs, ours)
    assert one is not None
    assert two is not None
    assert one.mean == pytest.approx(-two.mean, abs=1e-12)
    assert one.error == pytest.approx(two.error, abs=1e-12)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 0.0}, {"alpha": 1.0}, {"loss": -0.1}, {"loss": math.inf}, {"least": 1}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="found Losing"):
        Losing(**wrong)
