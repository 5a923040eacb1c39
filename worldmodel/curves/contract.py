"""The contract of all forecasters of a loss curve.

A history is fitted once; the fit then forecasts many candidates at once:

    fitted = forecaster.fit(history)
    forecast = fitted.predict(steps, lrs)            # lrs [K, H]
    forecast.chance_below(best)[:, -1] < 0.05        # candidates to prune
    fitted.predict(steps, lrs, at=[-1])              # [K, 1]: only the end, in half the time
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from trainenv.types import UserError
from trainenv.worldmodel.curves.history import Floats, History


class CurveForecast(NamedTuple):
    """Forecast of the level of the loss: the loss without the noise of single measurements.

    Attributes:
        mean: [Q] or [K, Q] mean in nats per token, above 0 and finite.
        std: [Q] or [K, Q] standard deviation of the error in nats per token, as the forecaster
            estimates it; above 0 and finite.
    """

    mean: Floats
    std: Floats

    def chance_below(self, best: float) -> Floats:
        """Return P(level < best) with normal errors, [Q] or [K, Q].

        Domhan et al. 2015 prune candidates for which it is below 0.05 at the end.
        """
        from scipy.special import ndtr

        chance: Floats = ndtr((best - self.mean) / self.std)
        return chance


class FittedCurve(Protocol):
    """A forecaster fitted to a history."""

    def predict(
        self, steps: ArrayLike, lrs: ArrayLike, at: Sequence[int] | None = None
    ) -> CurveForecast:
        """Forecast one future or many, at every listed step or at some of them.

        Args:
            steps: [H] steps, rising, after the last of the history.
            lrs: [H] or [K, H] learning rates of these steps; each also holds for the steps since
                the one listed before.
            at: [Q] positions in `steps` at which to forecast, for instance [-1] for the last; None
                for all, so that Q = H.

        Raises:
            UserError: the shapes do not fit, steps do not rise or are not after the history, a
                learning rate is negative or not finite, or a position does not exist.
        """
        ...


class CurveForecaster(Protocol):
    """A frozen dataclass of hyperparameters that fits histories.

    Fitting is deterministic, changes no state, and accepts every history.
    """

    def fit(self, history: History) -> FittedCurve:
        """Fit the forecaster to one curve."""
        ...


def check_number(name: str, value: object, *, least: float, below: float = math.inf) -> None:
    """Refuse a hyperparameter that is no finite number with least ≤ value < below.

    Raises:
        UserError: the value is no such number.
    """
    in_range = isinstance(value, Real) and least <= float(value) < below
    if isinstance(value, bool) or not in_range:
        limit = f"at least {least:g}"
        if below < math.inf:
            limit += f" and below {below:g}"
        raise UserError(
            f"{name} must be a finite number, {limit}, found {value!r}; give one or leave it out"
        )


def bounded_forecast(mean: Floats, std: Floats, scale: float) -> CurveForecast:
    """Clip a forecast to [1e-6, 1e3] × `scale`, the last known loss in nats per token."""
    least = 1e-6 * scale
    bounded = np.clip(np.nan_to_num(mean, nan=scale), least, 1e3 * scale)
    return CurveForecast(bounded, np.clip(np.nan_to_num(std, nan=1e3 * scale), least, 1e3 * scale))
