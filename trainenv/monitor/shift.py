"""Small rises that last: a cumulative sum (Page 1954) of what the loss, the gradient norm and the probe loss have of z.

A rise of a tenth of a nat for ten steps is within the noise on each of them, and far outside of it
on their sum. With w the sum of the z of loss and gradient norm, m and s its recent mean and
deviation, and p the probe's z on a step with a look,

    S ← max(0, S + (w − m) / s − drift + 2 (p − 2))        (the last term only on a step with a
    look)

Each z enters within ±2, the probe's within ±6: one odd step can't do it alone, a look that is far
out can. On recent mean and
deviation: the z of a young run are off, since the history they are judged against falls faster than
the loss does now.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_MOST = 2.0  # z of loss and gradient norm beyond which they count no further
_LEAST = 0.25  # their least deviation, in z: a rise over what never moved is no rise yet
_LOOK_MOST = 6.0
# half of the z that harm is expected to have on the probe, where a step's own `drift` is half of 1
_LOOK_DRIFT = 2.0
_LOOK_WEIGHT = 2.0
_CEILING = (
    2.0  # limits beyond which the sum grows no further, so that it is not long in coming down
)


class Shift:
    """The cumulative sum, as a share of its limit.

    Args:
        drift: deviations a step by which a rise is less than a shift.
        limit: sum that is a shift.
        memory: steps that the recent mean is of; nothing is said before three times as many.
    """

    def __init__(self, *, drift: float, limit: float, memory: int) -> None:
        self._drift = drift
        self._limit = limit
        self._memory = memory
        self._mean = 0.0
        self._variance = 1.0
        self._sum = 0.0
        self._count = 0

    def update(self, z: float, look: float | None) -> float:
        """The sum over its limit after one more step: 1 and more is a shift.

        Args:
            z: of the step's own measurements, together.
            look: z of the probe loss; None on a step without a look.
        """
        deviation = max(math.sqrt(self._variance), _LEAST)
        away = z - self._mean
        if self._count >= 3 * self._memory:
            rise = away / deviation - self._drift
            if look is not None:
                rise += _LOOK_WEIGHT * (_within(look, _LOOK_MOST) - _LOOK_DRIFT)
            self._sum = min(max(self._sum + rise, 0.0), _CEILING * self._limit)
        if self._count >= self._memory:
            away = _within(away, 3 * deviation)
        self._count += 1
        rate = max(1 / self._memory, 1 / (self._count + 1))
        self._mean += rate * away
        self._variance += rate * (away * away - self._variance)
        return self._sum / self._limit

    def begin_anew(self) -> None:
        """Forget the sum: what it has told is told."""
        self._sum = 0.0

    def state(self) -> list[float]:
        """As JSON values, for `resume`."""
        return [self._mean, self._variance, self._sum, self._count]

    def resume(self, state: Sequence[float]) -> None:
        """Go on from there."""
        self._mean, self._variance, self._sum, count = state
        self._count = int(count)


def together(*scores: float) -> float:
    """The sum of z-scores, each within its bounds."""
    return sum(_within(score, _MOST) for score in scores)


def _within(value: float, most: float) -> float:
    return max(-most, min(most, value))
