"""The loss stays where it is: the baseline that every forecaster must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from trainenv.worldmodel.curves.contract import CurveForecast, positive
from trainenv.worldmodel.curves.history import History, futures, wanted
from trainenv.worldmodel.curves.level import ROWS, Level, level

_ROWS = 64  # means of neighbours, of which the slope is taken


@dataclass(frozen=True, kw_only=True)
class LastValue:
    """Forecasts the level now.

    Standard deviation: how far the loss gets if it goes on as in the last quarter of the rows.
    """

    def fit(self, history: History) -> FittedLastValue:
        """Find the level."""
        steps, losses = history.means(_ROWS)
        recent = slice(-max(2, len(steps) // 4), None)
        x = steps[recent] - steps[recent].mean()
        y = losses[recent]
        slope = float(x @ y / (x @ x)) if len(steps) > 1 else 0.0
        return FittedLastValue(
            history=history, now=level(history.losses[history.measured][-ROWS:]), slope=slope
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedLastValue:
    """What `LastValue.fit` returns: the history, the level of its losses now in nats, and their slope of late in nats a step."""

    history: History
    now: Level
    slope: float

    def predict(
        self, steps: ArrayLike, lrs: ArrayLike, at: Sequence[int] | None = None
    ) -> CurveForecast:
        """The level now, whatever the learning rates; see `FittedCurve`."""
        ahead, rates = futures(self.history, steps, lrs)
        ahead = ahead[wanted(ahead, at)]
        std = np.sqrt(self.now.variance + (self.slope * (ahead - self.history.now)) ** 2)
        shape = (*rates.shape[:-1], len(ahead))
        return positive(
            np.full(shape, self.now.mean), np.broadcast_to(std, shape), self.history.last_loss
        )
