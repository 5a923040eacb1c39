"""Small forecasters of the next loss, trained online; their disagreement is an axis of the index.

Each is a linear regression on the same few features of the recent losses, fitted by recursive least
squares with its own forgetting factor. Their forecasts agree while the loss behaves as before. When
it changes, they diverge, because each forgets at its own rate.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FORGETTING = (0.9, 0.95, 0.98, 0.99, 0.995)
_FEATURES = 4
_RIDGE = 1e-2
# Most trace of a covariance: with forgetting it grows without limit while nothing new is seen.
_TRACE = 1e4


class Forecasters:
    """An ensemble of K online forecasters of the loss one step ahead, on F features."""

    def __init__(self) -> None:
        count = len(_FORGETTING)
        self._forgetting = np.array(_FORGETTING)[:, None, None]  # [K, 1, 1]
        self._weights = np.zeros((count, _FEATURES))  # [K, F]
        self._covariance = np.tile(np.eye(_FEATURES) / _RIDGE, (count, 1, 1))  # [K, F, F]
        self._features = np.zeros(_FEATURES)  # [F]
        self._averages = np.zeros(2)
        self._origin = 0.0
        self._error = 0.0
        self._count = 0

    def update(self, x: float) -> float:
        """Learn from a loss, then forecast the next one.

        Returns:
            Standard deviation of the forecasts across the ensemble, divided by the typical size of
            their errors; NaN until every forecaster has seen enough losses.
        """
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
        forecasts = self._weights @ self._features  # [K]
        return _std(forecasts) / max(self._error, 1e-12)

    def _learn(self, x: float) -> None:
        """Take one step of recursive least squares with each forecaster."""
        direction = self._covariance @ self._features  # [K, F]
        errors = x - self._weights @ self._features  # [K]
        scale = self._forgetting[:, :, 0] + (direction @ self._features)[:, None]  # [K, 1]
        gain = direction / scale
        self._weights += gain * errors[:, None]
        self._covariance -= gain[:, :, None] * direction[:, None, :]
        grown = self._covariance / self._forgetting
        # Without this, the asymmetry of rounding errors grows by 1/λ a step and spoils the
        # forecasts.
        grown = (grown + grown.transpose(0, 2, 1)) / 2
        bounded = grown.trace(axis1=1, axis2=2)[:, None, None] < _TRACE
        self._covariance = np.where(bounded, grown, self._covariance)
        size = float(np.add.reduce(np.abs(errors))) / len(errors)
        rate = max(0.02, 1 / self._count)
        self._error += rate * (size - self._error)

    def state_dict(self) -> dict[str, Any]:
        """Return strict JSON values."""
        return {
            "weights": self._weights.tolist(),
            "covariance": self._covariance.tolist(),
            "features": self._features.tolist(),
            "averages": self._averages.tolist(),
            "scalars": [self._origin, self._error, self._count],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned.

        Raises:
            ValueError: An array has the wrong shape.
        """
        names = ("weights", "covariance", "features", "averages")
        loaded = {name: np.array(state[name], dtype=np.float64) for name in names}
        for name, array in loaded.items():
            if array.shape != (own := getattr(self, f"_{name}").shape):
                raise ValueError(
                    f"{name} of the forecasters must have the shape {own}, found {array.shape}; "
                    "load a state of this version"
                )
        self._weights, self._covariance, self._features, self._averages = loaded.values()
        self._origin, self._error, self._count = state["scalars"]


def _std(values: NDArray[np.float64]) -> float:
    """Return `values.std()` of a few values, bit for bit, in a third of the time."""
    away = values - np.add.reduce(values) / len(values)
    return math.sqrt(float(np.add.reduce(away * away)) / len(values))
