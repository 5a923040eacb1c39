"""The level of a noisy series now: a random walk seen through noise (the local level model; Muth 1960, Harvey 1989).

The best linear estimate is an exponentially weighted mean; its gain g follows from how much of the
variance F of the one-step errors is noise, R = (1 − g)F, and how much is the walk, Q = g²F a row.
So the gain is chosen by one-step errors, and both variances follow from it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trainenv.worldmodel.curves.history import Floats

_GAINS = np.array([1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03])
ROWS = 256  # older rows say little about now
_UNKNOWN_NOISE = 0.02  # nats: for fewer than 3 rows


class Level(NamedTuple):
    """In the units of the series.

    Attributes:
        mean: the level at the last row.
        variance: of the error of `mean`.
        noise: variance of a single row about its level.
        walk: variance of the level's change from one row to the next.
    """

    mean: float
    variance: float
    noise: float
    walk: float


def level(series: Floats) -> Level:
    """The level at the end of a series of at least one finite number, all of them finite."""
    rows = series[-ROWS:]
    if len(rows) < 3:
        return Level(float(np.mean(rows)), _UNKNOWN_NOISE**2 / len(rows), _UNKNOWN_NOISE**2, 0.0)
    estimate = np.full(len(_GAINS), rows[0])
    errors = np.zeros(len(_GAINS))
    for seen, value in enumerate(rows[1:], start=1):
        error = value - estimate
        errors += np.abs(error)
        # The first rows are averaged: an exponential mean that starts at one value would carry its
        # noise for 1/g rows.
        estimate = estimate + np.maximum(_GAINS, 1 / (seen + 1)) * error
    best = int(np.argmin(errors))
    gain = max(float(_GAINS[best]), 1 / len(rows))
    # Mean absolute errors, because losses have spikes; √(π/2) makes them standard deviations of a
    # normal law.
    spread = float(np.sqrt(np.pi / 2) * errors[best] / (len(rows) - 1)) ** 2
    return Level(
        float(estimate[best]), gain * (1 - gain) * spread, (1 - gain) * spread, gain * gain * spread
    )
