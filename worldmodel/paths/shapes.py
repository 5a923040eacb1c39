"""A fixed list of paths: hold, and constants and ramps to levels below and above the rate now."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FACTORS = (0.2, 0.35, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 2.8, 4.0)
"""Levels, as factors on the rate now."""
LENGTHS = (0.0, 0.25, 0.5, 1.0)
"""Lengths of the ramps, as shares of what is left; 0 is a jump."""


@lru_cache(maxsize=512)
def shapes(decisions: int) -> NDArray[np.float64]:
    """Return paths [K, L] relative to now, over some decisions; the first holds the rate."""
    rows = [np.zeros(decisions)]
    for factor in FACTORS:
        for length in LENGTHS:
            steps = max(1, round(length * decisions))
            ramp = np.minimum(np.arange(1, decisions + 1) / steps, 1.0)
            rows.append(math.log(factor) * ramp)
    return np.unique(np.array(rows), axis=0)[_hold_first(rows)]


def _hold_first(rows: list[NDArray[np.float64]]) -> list[int]:
    """Return the order of the distinct rows in which the one that holds comes first."""
    distinct = np.unique(np.array(rows), axis=0)
    hold = int(np.flatnonzero(~distinct.any(axis=1))[0])
    return [hold, *(place for place in range(len(distinct)) if place != hold)]
