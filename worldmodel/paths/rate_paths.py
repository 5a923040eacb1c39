"""Paths of the learning rate: ln of its factor on the schedule, one number for each decision.

    path[d]   ln factor during decision d, 0 at first: the rate is schedule × exp(path)

Random paths cover what a planner may try, and more: constants, ramps, walks, rise and fall.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LOWEST = math.log(0.04)
HIGHEST = math.log(12.0)
"""Bounds of ln factors."""
_LEVELS = (math.log(0.12), math.log(6.0))  # bounds of drawn levels
_CHANGES = (math.log(0.8), math.log(0.9), 0.0, 0.0, math.log(1.1), math.log(1.25))
_WALKS = 0.3  # probability that a walk changes its slope at a decision


def random_path(rng: np.random.Generator, decisions: int, before: Floats | None = None) -> Floats:
    """Return a random path [decisions].

    Args:
        rng: Source of randomness.
        decisions: Number of decisions of the run.
        before: [d] beginning of the path, which is kept; None for the first decision at 0.
    """
    start = np.zeros(1) if before is None else before
    left = decisions - len(start)
    if left <= 0:
        return start[:decisions]
    kind = (_constant, _ramp, _walk, _two_levels)[rng.integers(4)]
    rest = kind(rng, left, float(start[-1]))
    whole: Floats = np.clip(np.concatenate([start, rest]), LOWEST, HIGHEST)
    return whole


def _constant(rng: np.random.Generator, left: int, now: float) -> Floats:
    """Return one level from some decision on."""
    rest = np.full(left, now)
    rest[rng.integers(0, max(1, left // 2)) :] = rng.uniform(*_LEVELS)
    return rest


def _ramp(rng: np.random.Generator, left: int, now: float) -> Floats:
    """Return a straight line in ln from now to a level, which then holds."""
    start = int(rng.integers(0, max(1, left // 3)))
    stop = start + int(rng.integers(1, max(2, left * 2 // 3)))
    line: Floats = np.interp(np.arange(left), [0, start, stop], [now, now, rng.uniform(*_LEVELS)])
    return line


def _walk(rng: np.random.Generator, left: int, now: float) -> Floats:
    """Return a walk whose slope persists for some decisions."""
    slope = 0.0
    rest = np.empty(left)
    for place in range(left):
        if rng.random() < _WALKS:
            slope = _CHANGES[rng.integers(len(_CHANGES))]
        now += slope
        rest[place] = now
    return rest


def _two_levels(rng: np.random.Generator, left: int, now: float) -> Floats:
    """Return a line to one level, then to another."""
    first, last = np.sort(rng.integers(1, left + 1, 2))
    levels = rng.uniform(*_LEVELS, size=2)
    corners = [-1, first, max(last, first + 1)]
    line: Floats = np.interp(np.arange(left), corners, [now, *levels])
    return line
