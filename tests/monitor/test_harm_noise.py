"""Harm must exceed the noise of the probe: what is noise, and what counts as harm in the loop."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from tests.monitor.test_regression import telemetry
from trainenv.agents.branching.triggers import Triggers
from trainenv.config.schema import BranchingConfig
from trainenv.monitor.harm import Harm, HarmWatch

HARM = 0.1


def watched(probes: Sequence[float], every: int = 4) -> HarmWatch:
    watch = HarmWatch(Harm())
    for place, probe in enumerate(probes, start=1):
        watch.update(every * place, 2.0, probe)
    return watch


def triggers(probes: Sequence[float], every: int = 4) -> Triggers:
    found = Triggers(BranchingConfig(harm=HARM, triggers=("harm",)).settings(16_000))
    found.observe([telemetry(every * k, probe) for k, probe in enumerate(probes, start=1)])
    return found


def zigzag(size: float, count: int = 12) -> list[float]:
    """Probes of one level whose changes are all equal: the noise is 1.0484 times the change."""
    return [2.0 + 0.5 * size * (-1) ** place for place in range(count)]


def test_noise_is_the_median_change_in_units_of_a_standard_deviation() -> None:
    assert watched(zigzag(0.05)).noise == pytest.approx(1.4826 * 0.05 / math.sqrt(2))
    assert watched([2.0] * 12).noise == 0.0


def test_noise_of_normal_probes_is_their_standard_deviation() -> None:
    rng = np.random.default_rng(0)
    found = [watched(2.0 + 0.02 * rng.normal(size=12)).noise for _ in range(400)]
    assert np.median(found) == pytest.approx(0.02, rel=0.1)


def test_a_trend_and_an_outlier_hardly_matter() -> None:
    noisy = np.array(zigzag(0.05))
    plain = watched(noisy).noise
    falling = watched(noisy - 0.005 * np.arange(len(noisy))).noise
    assert falling == pytest.approx(plain, rel=0.15)
    noisy[-3] -= 5.0
    assert watched(noisy).noise == pytest.approx(plain)


def test_noise_is_unknown_at_first_and_leaves_out_raised_probes() -> None:
    assert math.isnan(watched(zigzag(0.05, 3)).noise)
    assert not math.isnan(watched(zigzag(0.05, 4)).noise)
    before = watched(zigzag(0.02))
    after = watched([*zigzag(0.02), 2.5])
    assert after.noise == before.noise
    assert after.rising == 52


def test_noise_is_restored_with_the_state() -> None:
    watch = watched(zigzag(0.03))
    other = HarmWatch(Harm())
    other.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert other.noise == watch.noise


@pytest.mark.parametrize(("size", "rise"), [(0.05, 0.15), (0.08, 0.25)])
def test_a_rise_within_the_noise_is_no_harm(size: float, rise: float) -> None:
    """It is above `harm`, but below four standard deviations."""
    found = triggers([*zigzag(size), 2.0 + rise])
    assert found.harm > HARM
    assert found.harm_began is None
    assert not found.careful


@pytest.mark.parametrize(("size", "rise"), [(0.05, 0.3), (0.08, 0.45), (0.001, 0.13), (0.0, 0.13)])
def test_a_rise_above_the_noise_is_harm(size: float, rise: float) -> None:
    found = triggers([*zigzag(size), 2.0 + rise])
    assert found.harm_began == 52
    assert found.careful


def test_a_rise_below_the_setting_is_never_harm() -> None:
    found = triggers([*zigzag(0.001), 2.09])
    assert found.harm_began is None
    assert not found.careful


def test_harm_that_was_answered_is_not_answered_again_after_a_later_one() -> None:
    found = triggers([2.0] * 12)
    answered = []
    for place, probe in enumerate([2.3] * 12 + [2.7] * 4 + [2.3] * 4, start=13):
        found.observe([telemetry(4 * place, probe)])
        if found.harm_began is not None:
            answered.append(found.answer_harm())
            saved = json.loads(json.dumps(found.state_dict()))
            found.load_state_dict(saved)
    assert found.harm > HARM
    assert answered == [52, 100]


def test_harm_counts_while_the_noise_is_unknown_as_configured() -> None:
    found = Triggers(BranchingConfig(harm=HARM, triggers=("harm",)).settings(16_000))
    found.observe([telemetry(4 * k, 2.0) for k in range(1, 6)])
    found.observe([telemetry(24, 2.0 + 2 * HARM)])
    assert found.harm_began == 24
