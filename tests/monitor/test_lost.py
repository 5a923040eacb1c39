"""A loss that is not finite is an alarm at any time."""

from __future__ import annotations

import math

import pytest

from trainenv import UncertaintyIndex
from trainenv.types import Telemetry


def telemetry(step: int, loss: float) -> Telemetry:
    return Telemetry(step, step, 8, loss, 1.0, 1.0, math.inf, 0.0, "none", 0.1, 1.0, 0.1, 1.0, -1, 0.0)


@pytest.mark.parametrize("step", [1, 30, 88, 500])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_lost_run_fires_at_once(step: int, loss: float) -> None:
    index = UncertaintyIndex()
    quiet = [index.update(telemetry(k, 3 + 0.1 * math.sin(k))) for k in range(1, step)]
    assert not any(reading.fired for reading in quiet)
    assert index.update(telemetry(step, loss)).fired
