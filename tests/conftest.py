"""For every test."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of what is tested
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Exempt what was imported and collected from garbage collection, which else visits it often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def signals_are_left_as_they_were() -> Iterator[None]:
    """A store that was entered and never left would answer the SIGTERM of every test after it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) == before
