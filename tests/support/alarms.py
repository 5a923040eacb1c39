"""An index that fires where a test wants it to."""

from __future__ import annotations

import pytest

from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.types import Reading, Telemetry


def fires_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Each of `steps` fires the first time that the run comes by."""
    left = list(steps)

    def update(index: UncertaintyIndex, telemetry: Telemetry) -> Reading:
        fired = telemetry.step in left
        if fired:
            left.remove(telemetry.step)
        return Reading(index=9.0 if fired else 0.0, threshold=3.0, fired=fired)

    monkeypatch.setattr(UncertaintyIndex, "update", update)
