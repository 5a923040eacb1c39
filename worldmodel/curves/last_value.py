"""The forecast that the loss stays at its level: the baseline that every forecaster must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from trainenv.worldmodel.curves.contract import CurveForecast, bounded_forecast
from trainenv.worldmodel.curves.history import History, futures, wanted
from trainenv.worldmodel.curves.level import ROWS, Level, level

_ROWS = 64  # rows for the slope; each is a mean of neighbouring rows of the history


@dataclass(frozen=True, kw_only=True)
class LastValue:
    """A forecaster of the level now, whatever the learning rates.

    Its standard deviation grows by the slope of the loss over the last quarter of the rows.
    """

    def fit(self, history: History) -> FittedLastValue:
        """Estimate the level and the slope now."""
        steps, losses = history.means(_ROWS)
        recent = slice(-max(2, len(steps) // 4), None)
        x = steps[recent] - steps[recent].mean()
        y = losses[recent]
        slope = 0.0
        if len(steps) > 1:
            slope = float(x @ y / (x @ x))
        return FittedLastValue(
            history=history, now=level(history.losses[history.measured][-ROWS:]), slope=slope
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedLastValue:
    """The level of a history.

    Attributes:
        history: History that it was fitted to.
        now: Level of the losses now, in nats per token.
        slope: Recent slope of the losses, in nats per token and step.
    """

    history: History
    now: Level
    slope: float

    def predict(
        self, steps: ArrayLike, lrs: ArrayLike, at: Sequence[int] | None = None
    ) -> CurveForecast:
        """Forecast the level now, whatever the learning rates; see `FittedCurve`."""
        ahead, rates = futures(self.history, steps, lrs)
        ahead = ahead[wanted(ahead, at)]
        std = np.sqrt(self.now.variance + (self.slope * (ahead - self.history.now)) ** 2)
        shape = (*rates.shape[:-1], len(ahead))
        return bounded_forecast(
            np.full(shape, self.now.mean), np.broadcast_to(std, shape), self.history.last_loss
        )
