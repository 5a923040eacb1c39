"""Several small forecasters of the next losses, trained online; how far they disagree is one axis of the uncertainty index.

Each is a linear regression on the same few features of the recent losses, fitted by recursive least
squares with its own forgetting factor: they agree while the loss keeps its habits, and part when it
breaks them, each as fast as it forgets.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FORGETTING = (0.9, 0.95, 0.98, 0.99, 0.995)
_FEATURES = 4
_RIDGE = 1e-2
# bound on a covariance's trace: forgetting makes it grow without end while nothing new is seen
_TRACE = 1e4


class Forecasters:
    """An ensemble of online forecasters of the loss one step ahead.

    `update(x)` first learns from `x`, then forecasts: it returns the standard deviation of the
    forecasts across the ensemble divided by the typical size of a forecast's error, both in the
    units of `x`.
    """

    def __init__(self) -> None:
        count = len(_FORGETTING)
        self._forgetting = np.array(_FORGETTING)[:, None, None]
        self._weights = np.zeros((count, _FEATURES))
        self._covariance = np.tile(np.eye(_FEATURES) / _RIDGE, (count, 1, 1))
        self._features = np.zeros(_FEATURES)
        self._averages = np.zeros(2)
        self._origin = 0.0
        self._error = 0.0
        self._count = 0

    def update(self, x: float) -> float:
        """Disagreement about the step after the one whose loss is `x`; NaN until every forecaster has seen enough."""
        if not math.isfinite(x):
            return math.nan
        if self._count == 0:
            self._origin = x
        x -= self._origin  # losses near their first value keep the regression well conditioned
        if self._count > 0:
            self._learn(x)
        self._averages += np.array((0.3, 0.05)) * (x - self._averages)
        fast, slow = self._averages
        self._features = np.array((1.0, x, fast, slow))
        self._count += 1
        if self._count < 2 * _FEATURES:
            return math.nan
        forecasts = self._weights @ self._features  # (K,)
        return _spread(forecasts) / max(self._error, 1e-12)

    def _learn(self, x: float) -> None:
        """One step of recursive least squares for each forecaster.

        Shapes: weights (K, F), covariance (K, F, F).
        """
        direction = self._covariance @ self._features  # (K, F)
        errors = x - self._weights @ self._features  # (K,)
        scale = self._forgetting[:, :, 0] + (direction @ self._features)[:, None]  # (K, 1)
        gain = direction / scale
        self._weights += gain * errors[:, None]
        self._covariance -= gain[:, :, None] * direction[:, None, :]
        grown = self._covariance / self._forgetting
        # Kept symmetric by hand: rounding's asymmetry would grow by 1/λ a step and take the
        # forecasts with it.
        grown = (grown + grown.transpose(0, 2, 1)) / 2
        bounded = grown.trace(axis1=1, axis2=2)[:, None, None] < _TRACE
        self._covariance = np.where(bounded, grown, self._covariance)
        size = float(np.add.reduce(np.abs(errors))) / len(errors)
        rate = max(0.02, 1 / self._count)
        self._error += rate * (size - self._error)

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self._weights.tolist(),
            "covariance": self._covariance.tolist(),
            "features": self._features.tolist(),
            "averages": self._averages.tolist(),
            "scalars": [self._origin, self._error, self._count],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        names = ("weights", "covariance", "features", "averages")
        loaded = {name: np.array(state[name], dtype=np.float64) for name in names}
        for name, array in loaded.items():
            if array.shape != (own := getattr(self, f"_{name}").shape):
                raise ValueError(
                    f"{name} of the forecasters should have the shape {own}, found {array.shape}"
                )
        self._weights, self._covariance, self._features, self._averages = loaded.values()
        self._origin, self._error, self._count = state["scalars"]


def _spread(values: NDArray[np.float64]) -> float:
    """The standard deviation of a few values: `values.std()`, bit for bit, in a third of the time."""
    away = values - np.add.reduce(values) / len(values)
    return math.sqrt(float(np.add.reduce(away * away)) / len(values))
