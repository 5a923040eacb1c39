"""What every forecaster of a loss curve does.

A history is fitted once, and then forecast for many candidates at once:

    fitted = forecaster.fit(history)
    forecast = fitted.predict(steps, lrs)            # lrs [K, H]
    forecast.chance_below(best)[:, -1] < 0.05        # candidates to prune
    fitted.predict(steps, lrs, at=[-1])              # [K, 1]: the end alone, in half the time
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
    """The *level* of the loss (what it would be without the noise of single measurements) at each step asked for.

    Attributes:
        mean: [Q] or [K, Q] nats per token, above 0 and finite.
        std: [Q] or [K, Q] nats per token, above 0 and finite: the forecaster's own idea of its
            error.
    """

    mean: Floats
    std: Floats

    def chance_below(self, best: float) -> Floats:
        """P(level < best), [Q] or [K, Q], with normal errors.

        Domhan et al. 2015 prune where it is below 0.05 at the end.
        """
        from scipy.special import ndtr

        chance: Floats = ndtr((best - self.mean) / self.std)
        return chance


class FittedCurve(Protocol):
    """A forecaster that has seen a history."""

    def predict(
        self, steps: ArrayLike, lrs: ArrayLike, at: Sequence[int] | None = None
    ) -> CurveForecast:
        """Forecast one future or many, at every step listed or at some of them.

        Args:
            steps: [H] steps, rising, after the last of the history.
            lrs: [H] or [K, H] learning rates of these steps; the steps since the one listed before
                have the same.
            at: [Q] positions in `steps` of those at which a forecast is wanted, [-1] for the last;
                None for all, then Q = H.

        Raises:
            UserError: the shapes do not fit, steps do not rise or are not to come, a learning rate
                is negative or not finite, or a position does not exist.
        """
        ...


class CurveForecaster(Protocol):
    """A frozen dataclass of hyperparameters.

    Fitting is deterministic and changes nothing; any history will do.
    """

    def fit(self, history: History) -> FittedCurve:
        """Learn from one curve."""
        ...


def number(name: str, value: object, *, least: float, below: float = math.inf) -> None:
    """Refuse a hyperparameter that is no finite number with least ≤ value < below.

    Raises:
        UserError: it is none.
    """
    if not (
        not isinstance(value, bool) and isinstance(value, Real) and least <= float(value) < below
    ):
        limit = f" and below {below:g}" if below < math.inf else ""
        raise UserError(
            f"{name} must be a finite number, at least {least:g}{limit}, found {value!r}; give one or leave it out"
        )


def positive(mean: Floats, std: Floats, scale: float) -> CurveForecast:
    """A forecast within bounds that no loss leaves: around `scale` (nats per token), the last known level."""
    least = 1e-6 * scale
    bounded = np.clip(np.nan_to_num(mean, nan=scale), least, 1e3 * scale)
    return CurveForecast(bounded, np.clip(np.nan_to_num(std, nan=1e3 * scale), least, 1e3 * scale))
