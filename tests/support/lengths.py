"""Two lengths for tests that sample or enumerate: short in `make test`, long where LONG_TESTS is set, as in `.ci/run`."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

LONG = os.environ.get("LONG_TESTS", "") not in ("", "0")


def either(*, short: T, long: T) -> T:
    """The value for the length that was chosen."""
    return long if LONG else short
