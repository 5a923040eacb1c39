"""The current level of a noisy series: a random walk observed with noise.

This is the local level model (Muth 1960, Harvey 1989). Its best linear estimate is an exponentially
weighted mean with a gain g. The variance F of the one-step errors splits into noise, R = (1 − g)F,
and walk, Q = g²F per row. So g is chosen by the one-step errors, and both variances follow from it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trainenv.worldmodel.curves.history import Floats

_GAINS = np.array([1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03])
ROWS = 256  # older rows carry little information about the level now
_UNKNOWN_NOISE = 0.02  # assumed standard deviation of the noise for fewer than 3 rows, in nats


class Level(NamedTuple):
    """The level of a series at its last row, in the units of the series.

    Attributes:
        mean: Estimate of the level.
        variance: Variance of the error of this estimate.
        noise: Variance of a single row about its level.
        walk: Variance of the level's change from one row to the next.
    """

    mean: float
    variance: float
    noise: float
    walk: float


def level(series: Floats) -> Level:
    """Estimate the level at the end of a series of at least one number, all of them finite."""
    rows = series[-ROWS:]
    if len(rows) < 3:
        noise = _UNKNOWN_NOISE**2
        return Level(mean=float(np.mean(rows)), variance=noise / len(rows), noise=noise, walk=0.0)
    estimate = np.full(len(_GAINS), rows[0])
    errors = np.zeros(len(_GAINS))
    for seen, value in enumerate(rows[1:], start=1):
        error = value - estimate
        errors += np.abs(error)
        # The first rows are averaged, because an exponential mean that starts from one value keeps
        # the noise of this value for 1/g rows.
        estimate = estimate + np.maximum(_GAINS, 1 / (seen + 1)) * error
    best = int(np.argmin(errors))
    gain = max(float(_GAINS[best]), 1 / len(rows))
    # The mean absolute error is robust to spikes; for normal errors √(π/2) turns it into a standard
    # deviation.
    spread = float(np.sqrt(np.pi / 2) * errors[best] / (len(rows) - 1)) ** 2
    return Level(
        mean=float(estimate[best]),
        variance=gain * (1 - gain) * spread,
        noise=(1 - gain) * spread,
        walk=gain * gain * spread,
    )
