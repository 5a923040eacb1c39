"""The z-score of a signal against its own history."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from trainenv.types import UserError

_REFRESH = 16  # values between refreshes of the median and the spread
# Standard deviations to which a value is limited when it joins the history, so that a spike does
# not widen the usual range.
_WINSOR = 4.0
BEYOND = 100.0  # largest z, and the z of a non-finite value


class Track:
    """z-scores of a signal's residual against its exponential moving average, over a window.

    Gradient norms and losses have heavier tails than a normal distribution, and more so upwards. So
    each side has its own standard deviation, the larger of two estimates: 1.4826 × the median
    absolute deviation, and the one that the `tail` percentile would have in a normal distribution.

    Args:
        window: Number of residuals in the history.
        decay: Decay of the exponential moving average a value.
        least: Number of residuals below which the z-score is 0.
        tail: Percentile that sets the spread; several residuals of the window should lie beyond it.
        follow: True if the average follows a jump at once, as for a measurement on clean data: then
            the model has really changed. Otherwise a jump counts as `_WINSOR` standard deviations.
        finest: Least spread in the unit of the signal, for a signal that has never moved.

    Attributes:
        entered: The last value as it joined the history, limited if it was a spike; NaN before the
            first.
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
    def ready(self) -> bool:
        """True if the history is long enough for z-scores."""
        return self._count >= self._least

    def update(self, value: float) -> float:
        """Return the z-score of a value and add it to the history."""
        if not math.isfinite(value):
            return BEYOND
        if math.isnan(self._average):
            self._average = self.entered = value
            return 0.0
        residual = value - self._average
        z = 0.0
        kept = residual
        self.entered = value
        if self.ready:
            spread = self._above if residual > self._median else self._below
            z = max(-BEYOND, min(BEYOND, (residual - self._median) / spread))
            kept = self._median + max(-_WINSOR, min(_WINSOR, z)) * spread
            if abs(z) > _WINSOR:
                self.entered = self._average + kept
        self._residuals[self._count % self._window] = kept
        self._count += 1
        if self._count % _REFRESH == 0 or self._count == self._least:
            self._refresh()
        if self._follow:
            kept = residual
        # The plain mean at first, so that the average follows the fast fall of a young run.
        self._average += max(1 - self._decay, 1 / (self._count + 1)) * kept
        return z

    def _refresh(self) -> None:
        """Compute the median and the spread on each side from the window."""
        known = self._residuals[: min(self._count, self._window)]
        low, self._median, high = (
            float(q) for q in np.percentile(known, (100 - self._tail, 50, self._tail))
        )
        deviation = 1.4826 * float(np.median(np.abs(known - self._median)))
        self._above = max(deviation, (high - self._median) / self._tail_z, self._finest) + 1e-9
        self._below = max(deviation, (self._median - low) / self._tail_z, self._finest) + 1e-9

    def state_dict(self) -> dict[str, Any]:
        """Return strict JSON values."""
        average = None if math.isnan(self._average) else self._average
        known = self._residuals[: min(self._count, self._window)].tolist()
        return {
            "residuals": known,
            "scalars": [self._count, average, self._median, self._above, self._below],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned.

        Raises:
            UserError: The state has a longer window.
        """
        known = state["residuals"]
        if len(known) > self._window:
            raise UserError(
                f"the monitor's state needs a window of at least {len(known)}, found "
                f"{self._window}; restore it under the same monitor.uncertainty.window"
            )
        self._residuals = np.zeros(self._window)
        self._residuals[: len(known)] = known
        self._count, average, self._median, self._above, self._below = state["scalars"]
        self._average = math.nan if average is None else average
