"""A multi-power law that goes on from a history, for many futures at once.

The sums over changes are what costs. Those of the past are the same function of S for every
candidate: they are evaluated once, on a grid. Those to come are gathered between some knots, at
which the law is evaluated, and which lines connect. So 128 candidates of 2000 steps take
milliseconds instead of minutes, and the forecast is off by less than a hundredth of what changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from trainenv.worldmodel.curves.contract import CurveForecast, positive
from trainenv.worldmodel.curves.history import Floats, History, futures, wanted
from trainenv.worldmodel.curves.law import Ends, Law, gain, gather, loss
from trainenv.worldmodel.curves.law_fit import Curve, blocks, curve
from trainenv.worldmodel.curves.level import ROWS, Level, level

_EXACT = 48  # rows ahead up to which all are knots
_KNOTS = 32  # of more rows, at even distances
_AFTER = np.array(
    [0, 3, 10, 25, 45]
)  # rows after now and after a great jump of the learning rate that are knots too
_JUMPS = 4  # at most; the greatest of any candidate
_GREAT = 0.05  # of the greatest learning rate to come
_GRID = 192


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedLaw:
    """What `MultiPower.fit` returns.

    Args:
        history: what is known.
        law: its law; None forecasts that the level stays.
        known: the history as the law sees it.
        offset: the level now of (observed − the law), in nats; of the losses themselves where there
            is no law.
        anchored: whether forecasts start from the level now.
        relative_error: standard deviation of the error in parts of the forecast change.
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
        """The law's losses from now on; see `FittedCurve`."""
        ahead, rates = futures(self.history, steps, lrs)
        many = np.atleast_2d(rates)  # [K, H]
        knots = _knots(many)
        times = np.concatenate([[self.history.now], ahead[knots]])  # [P + 1]
        values = self._values(ahead, many, knots)  # [K, P + 1]
        change = values - values[:, :1]
        start = float(values[0, 0])
        # [P + 1]
        variance = self.offset.variance + self.offset.walk * (times - times[0]) / self.history.gap
        if self.anchored:
            start += self.offset.mean
        else:
            variance = variance + self.offset.mean**2
        std = np.sqrt((self.relative_error * change) ** 2 + variance)
        mean, std = positive(start + change, std, self.history.last_loss)
        lines = _lines(times, ahead[wanted(ahead, at)])  # [P + 1, Q]
        shape = (*rates.shape[:-1], lines.shape[1])
        return CurveForecast((mean @ lines).reshape(shape), (std @ lines).reshape(shape))

    def _values(self, ahead: Floats, rates: Floats, knots: Ends) -> Floats:
        """The law without its offset, now and at the knots, [K, P + 1]; 0 everywhere where there is no law."""
        if self.law is None:
            return np.zeros((len(rates), len(knots) + 1))
        known = self.known
        gaps = np.diff(ahead, prepend=self.history.now)
        first = np.full(len(rates), known.last_lr)
        # Sums count from now on, so that small ones keep their digits beside a long past.
        changes, sums = gather(first, np.zeros(len(rates)), gaps, rates, knots)
        grid = np.linspace(0.0, 1.0, _GRID) ** 2 * sums.max()
        if sums.size < _GRID:
            grid = np.unique(np.append(sums, 0.0))  # exact
        past = loss(self.law, known.last_sum + grid, known.changes)  # [_GRID]
        to_come = np.interp(sums, grid, past) - gain(self.law, sums, changes)  # [K, P]
        return np.concatenate([np.full((len(rates), 1), past[0]), to_come], axis=1)


def fitted(
    history: History, law: Law | None, *, anchored: bool = True, relative_error: float
) -> FittedLaw:
    """A law that goes on from a history; without one, its level now."""
    known = curve(history)
    rows = history.measured
    sums = history.lr_sums
    series = history.losses
    if law is not None:
        rows &= (sums >= known.first_sum) & (sums > 0)
        rows[: np.flatnonzero(rows)[-ROWS:][0]] = False
    series = series[rows] if law is None else series[rows] - loss(law, sums[rows], known.changes)
    return FittedLaw(
        history=history,
        law=law,
        known=known,
        offset=level(series),
        anchored=anchored or law is None,
        relative_error=relative_error,
    )


def _knots(rates: Floats) -> Ends:
    """Which of the rows of learning rates [K, H] are knots, [P], rising, the last row among them."""
    rows = rates.shape[1]
    if rows <= _EXACT:
        return np.arange(rows)
    jumps = np.zeros(rows - 1)  # from each row to the next, the greatest of all candidates
    for row in rates:  # one at a time stays in the cache: three times as fast as all at once
        np.maximum(jumps, np.abs(np.diff(row)), out=jumps)
    greatest = np.argpartition(jumps, -_JUMPS)[-_JUMPS:]
    greatest = np.append(greatest[jumps[greatest] > _GREAT * rates.max()], 0)
    after = (greatest[:, None] + _AFTER).ravel()
    return np.union1d(blocks(rows, _KNOTS), after[after < rows])


def _lines(times: Floats, ahead: Floats) -> Floats:
    """Weights [P + 1, Q] of values at the times [P + 1] in the lines between them, at the steps `ahead` [Q]."""
    right = np.searchsorted(times, ahead)
    share = (ahead - times[right - 1]) / (times[right] - times[right - 1])
    weights = np.zeros((len(times), len(ahead)))
    columns = np.arange(len(ahead))
    weights[right - 1, columns] = 1 - share
    weights[right, columns] = share
    return weights
