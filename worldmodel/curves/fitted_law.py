"""A multi-power law that continues a history, for many futures at once.

The sums over changes of the learning rate take most of the time. Past changes contribute the same
function of S for every candidate, so it is evaluated once, on a grid. Changes to come are gathered
between knots; the law is evaluated at the knots and interpolated linearly between them. So 128
candidates of 2000 steps take milliseconds instead of minutes, and the error is less than a
hundredth of the forecast change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from trainenv.worldmodel.curves.contract import CurveForecast, bounded_forecast
from trainenv.worldmodel.curves.history import Floats, History, futures, wanted
from trainenv.worldmodel.curves.law import Ends, Law, gain, gather, loss
from trainenv.worldmodel.curves.law_fit import Curve, blocks, curve
from trainenv.worldmodel.curves.level import ROWS, Level, level

_EXACT = 48  # up to this number of rows ahead all are knots
_KNOTS = 32  # number of evenly spaced knots for more rows
_AFTER = np.array([0, 3, 10, 25, 45])  # further knots: rows after now and after each great jump
_JUMPS = 4  # greatest jumps of the learning rate, of any candidate, that get knots
_GREAT = 0.05  # smallest great jump, as a share of the greatest learning rate to come
_GRID = 192  # points at which the contribution of past changes is evaluated


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedLaw:
    """A multi-power law fitted to a history.

    Args:
        history: History that it was fitted to.
        law: Fitted law; None forecasts that the level stays.
        known: The history as the law sees it.
        offset: Level now of (observed − law), in nats; without a law, level of the losses.
        anchored: True for forecasts that start from the level now.
        relative_error: Standard deviation of the error, relative to the forecast change.
    """

    history: History
    law: Law | None
    known: Curve
    offset: Level
    anchored: bool
    relative_error: float

    def predict(
        self, steps: ArrayLike, lrs: ArrayLike, at: Sequence[int] | None = None
    ) -> CurveForecast:
        """Forecast the losses of the law from now on; see `FittedCurve`."""
        ahead, rates = futures(self.history, steps, lrs)
        many = np.atleast_2d(rates)  # [K, H]
        knots = _knots(many)
        times = np.concatenate([[self.history.now], ahead[knots]])  # [P + 1]
        values = self._values(ahead, many, knots)  # [K, P + 1]
        change = values - values[:, :1]
        start = float(values[0, 0])
        variance = self.offset.variance + self.offset.walk * (times - times[0]) / self.history.gap
        if self.anchored:
            start += self.offset.mean
        else:
            variance = variance + self.offset.mean**2
        std = np.sqrt((self.relative_error * change) ** 2 + variance)
        mean, std = bounded_forecast(start + change, std, self.history.last_loss)
        lines = _lines(times, ahead[wanted(ahead, at)])  # [P + 1, Q]
        shape = (*rates.shape[:-1], lines.shape[1])
        return CurveForecast((mean @ lines).reshape(shape), (std @ lines).reshape(shape))

    def _values(self, ahead: Floats, rates: Floats, knots: Ends) -> Floats:
        """Return the law without its offset now and at the knots, [K, P + 1]; 0 without a law."""
        if self.law is None:
            return np.zeros((len(rates), len(knots) + 1))
        known = self.known
        gaps = np.diff(ahead, prepend=self.history.now)
        first = np.full(len(rates), known.last_lr)
        # Sums start from now, so that small ones are not rounded away against a long past.
        changes, sums = gather(first, np.zeros(len(rates)), gaps, rates, knots)
        grid = np.linspace(0.0, 1.0, _GRID) ** 2 * sums.max()
        if sums.size < _GRID:
            grid = np.unique(np.append(sums, 0.0))  # then the interpolation is exact
        past = loss(self.law, known.last_sum + grid, known.changes)  # [_GRID]
        to_come = np.interp(sums, grid, past) - gain(self.law, sums, changes)  # [K, P]
        return np.concatenate([np.full((len(rates), 1), past[0]), to_come], axis=1)


def fitted(
    history: History, law: Law | None, *, anchored: bool = True, relative_error: float
) -> FittedLaw:
    """Continue a history by a law; without a law, by its level now."""
    known = curve(history)
    rows = history.measured
    sums = history.lr_sums
    if law is not None:
        rows &= (sums >= known.first_sum) & (sums > 0)
        rows[: np.flatnonzero(rows)[-ROWS:][0]] = False
    series = history.losses[rows]
    if law is not None:
        series = series - loss(law, sums[rows], known.changes)
    return FittedLaw(
        history=history,
        law=law,
        known=known,
        offset=level(series),
        anchored=anchored or law is None,
        relative_error=relative_error,
    )


def _knots(rates: Floats) -> Ends:
    """Choose knots among the H rows of learning rates [K, H].

    Returns:
        [P] rows, rising, the last row included.
    """
    rows = rates.shape[1]
    if rows <= _EXACT:
        return np.arange(rows)
    jumps = np.zeros(rows - 1)  # from each row to the next, the greatest of all candidates
    for candidate in rates:  # one at a time fits into the cache: three times as fast as all at once
        np.maximum(jumps, np.abs(np.diff(candidate)), out=jumps)
    greatest = np.argpartition(jumps, -_JUMPS)[-_JUMPS:]
    greatest = np.append(greatest[jumps[greatest] > _GREAT * rates.max()], 0)
    after = (greatest[:, None] + _AFTER).ravel()
    return np.union1d(blocks(rows, _KNOTS), after[after < rows])


def _lines(times: Floats, ahead: Floats) -> Floats:
    """Return the weights [P + 1, Q] that interpolate values at times [P + 1] to steps ahead [Q]."""
    right = np.searchsorted(times, ahead)
    share = (ahead - times[right - 1]) / (times[right] - times[right - 1])
    weights = np.zeros((len(times), len(ahead)))
    columns = np.arange(len(ahead))
    weights[right - 1, columns] = 1 - share
    weights[right, columns] = share
    return weights
