"""A cumulative sum (Page 1954) that finds small lasting rises of loss and gradient norm.

A rise of a tenth of a nat for ten steps is within the noise of each step, but far outside the noise
of their sum. With w the sum of the z-scores of loss and gradient norm, m and s its recent mean and
deviation, and p the z-score of the probe loss,

    S ← max(0, S + (w − m) / s − drift + 2 (p − 2))

where the last term counts only on a step with a probe. Each z-score counts within ±2, that of the
probe within ±6: one unusual step cannot reach the limit alone, but a probe far outside can.

The mean and the deviation are recent ones, because the z-scores of a young run are biased: the
history that they refer to falls faster than the loss does now.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_MOST = 2.0  # largest z of loss and gradient norm that counts
_LEAST = 0.25  # least deviation, in z, so that a tiny change after a constant signal is no rise
_PROBE_MOST = 6.0  # largest z of the probe loss that counts
# Drift of the probe: half of the z that harm is expected to have there. The expected z of a step is
# 1, so its `drift` is 0.5.
_PROBE_DRIFT = 2.0
_PROBE_WEIGHT = 2.0
_CEILING = 2.0  # most of the sum, in limits, so that it soon falls again


class Shift:
    """The cumulative sum as a share of its limit.

    Args:
        drift: Deviations a step that a rise must exceed.
        limit: Sum that counts as a shift.
        memory: Number of steps of the recent mean. The sum is 0 for the first three times as many.
    """

    def __init__(self, *, drift: float, limit: float, memory: int) -> None:
        self._drift = drift
        self._limit = limit
        self._memory = memory
        self._mean = 0.0
        self._variance = 1.0
        self._sum = 0.0
        self._count = 0

    def update(self, z: float, probe: float | None) -> float:
        """Take in one more step and return the sum over its limit; 1 or more is a shift.

        Args:
            z: Bounded sum of the z-scores of loss and gradient norm.
            probe: Z-score of the probe loss; None on a step without a probe.
        """
        deviation = max(math.sqrt(self._variance), _LEAST)
        away = z - self._mean
        if self._count >= 3 * self._memory:
            rise = away / deviation - self._drift
            if probe is not None:
                rise += _PROBE_WEIGHT * (_within(probe, _PROBE_MOST) - _PROBE_DRIFT)
            self._sum = min(max(self._sum + rise, 0.0), _CEILING * self._limit)
        if self._count >= self._memory:
            away = _within(away, 3 * deviation)
        self._count += 1
        rate = max(1 / self._memory, 1 / (self._count + 1))
        self._mean += rate * away
        self._variance += rate * (away * away - self._variance)
        return self._sum / self._limit

    def reset(self) -> None:
        """Set the sum to 0, after it has fired or the run was rewound."""
        self._sum = 0.0

    def state(self) -> list[float]:
        """Return the state as JSON values."""
        return [self._mean, self._variance, self._sum, self._count]

    def load_state(self, state: Sequence[float]) -> None:
        """Load a state that `state` returned."""
        self._mean, self._variance, self._sum, count = state
        self._count = int(count)


def bounded_sum(*scores: float) -> float:
    """Return the sum of z-scores, each within ±2."""
    return sum(_within(score, _MOST) for score in scores)


def _within(value: float, most: float) -> float:
    return max(-most, min(most, value))
