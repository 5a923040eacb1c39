"""One signal against its own history: how many standard deviations its newest value lies from what was usual."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from trainenv.types import UserError

_REFRESH = 16  # values between refreshes of what is usual
# standard deviations beyond which a value enters the history only that far, so that a spike is no
# new normal
_WINSOR = 4.0
BEYOND = 100.0  # the largest z, and that of a value that is not finite


class Track:
    """z-scores of a signal's residual against its exponential moving average, over a window.

    Gradient norms and losses have heavier tails than a normal distribution, and more so upwards. So
    the standard deviation is taken for each side on its own: the larger of 1.4826 × the median
    absolute deviation and of what the `tail` percentile would be of, if it were a normal
    distribution's.

    Args:
        window: residuals of history that count.
        decay: of the exponential moving average, per value.
        least: residuals of history below which there is no z-score (0 is returned).
        tail: percentile that sets the spread; the window should hold several residuals beyond it.
        follow: whether the average follows a jump at once, as what is measured on clean data
            should: the model *is* elsewhere then. Otherwise it follows a jump as if it were
            `_WINSOR` standard deviations.
        finest: least spread, where the signal's own unit says what is small: one that never moved
            may begin to.

    Attributes:
        entered: the newest value as it joined the history, a spike within its bounds. NaN before
            the first.
    """

    def __init__(
        self,
        window: int,
        decay: float,
        least: int,
        *,
        tail: float = 98.0,
        follow: bool = False,
        finest: float = 0.0,
    ) -> None:
        self._finest = finest
        self._window = window
        self._decay = decay
        self._least = least
        self._follow = follow
        self._tail = tail
        self._tail_z = NormalDist().inv_cdf(tail / 100)
        self._residuals = np.zeros(window)
        self._count = 0
        self._average = math.nan
        self._median = self._above = self._below = 0.0
        self.entered = math.nan

    @property
    def speaks(self) -> bool:
        """Whether there is enough history for z-scores."""
        return self._count >= self._least

    def update(self, value: float) -> float:
        """The z-score of `value`, which then joins the history."""
        if not math.isfinite(value):
            return BEYOND
        if math.isnan(self._average):
            self._average = self.entered = value
            return 0.0
        residual = value - self._average
        z = 0.0
        kept = residual
        self.entered = value
        if self.speaks:
            spread = self._above if residual > self._median else self._below
            z = max(-BEYOND, min(BEYOND, (residual - self._median) / spread))
            kept = self._median + max(-_WINSOR, min(_WINSOR, z)) * spread
            if abs(z) > _WINSOR:
                self.entered = self._average + kept
        self._residuals[self._count % self._window] = kept
        self._count += 1
        if self._count % _REFRESH == 0 or self._count == self._least:
            self._refresh()
        # The plain mean at first, so that the average follows a young run's fast fall.
        self._average += max(1 - self._decay, 1 / (self._count + 1)) * (
            residual if self._follow else kept
        )
        return z

    def _refresh(self) -> None:
        known = self._residuals[: min(self._count, self._window)]
        low, self._median, high = (
            float(q) for q in np.percentile(known, (100 - self._tail, 50, self._tail))
        )
        deviation = 1.4826 * float(np.median(np.abs(known - self._median)))
        self._above = max(deviation, (high - self._median) / self._tail_z, self._finest) + 1e-9
        self._below = max(deviation, (self._median - low) / self._tail_z, self._finest) + 1e-9

    def state_dict(self) -> dict[str, Any]:
        average = None if math.isnan(self._average) else self._average
        known = self._residuals[: min(self._count, self._window)].tolist()
        return {
            "residuals": known,
            "scalars": [self._count, average, self._median, self._above, self._below],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        known = state["residuals"]
        if len(known) > self._window:
            raise UserError(
                f"the monitor's state has a window of at least {len(known)}, this one's is {self._window}; "
                "restore it under the same monitor.uncertainty.window"
            )
        self._residuals = np.zeros(self._window)
        self._residuals[: len(known)] = known
        self._count, average, self._median, self._above, self._below = state["scalars"]
        self._average = math.nan if average is None else average
