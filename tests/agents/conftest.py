"""Fixtures that the tests of the loop share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.steered_runs import alarm_at
from trainenv.monitor.uncertainty import UncertaintyIndex


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """No alarms but those that a test asks for."""

    def at(*steps: int) -> None:
        monkeypatch.setattr(UncertaintyIndex, "update", alarm_at(*steps))

    at()
    return at
