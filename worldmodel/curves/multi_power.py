"""The multi-power law as a forecaster, by itself or anchored at the level of the loss now.

Anchored, the forecast is the law's plus (observed − predicted) at now. *Observed − predicted* is
the level of that difference over the last rows (`level`), not its last value: nothing is lost where
rows are exact, and the noise of single batches does not move every forecast.

What it is fitted on:
- `MultiPower()` fits all seven numbers to the history, around a wide belief (`law_fit`): before the learning rate has changed
  for the first time, what a change does comes from the belief alone.
- `MultiPower().pooled(histories)` fits them to several curves of one model with different schedules. They are then held.
- `MultiPower(law=law, spread=1.0)` takes a law of another model as the centre of the belief.

    pooled = MultiPower().pooled([constant, cosine])
    pooled.fit(history).predict(steps, lrs)        # lrs [K, H]: K candidates

Standard deviation: that of the level now, and of its walk until then (both from the differences); a
share of the change that is
forecast: `relative_error`, and the fit's own doubt about what annealing gains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainenv.types import UserError
from trainenv.worldmodel.curves.contract import number
from trainenv.worldmodel.curves.fitted_law import FittedLaw, fitted
from trainenv.worldmodel.curves.history import History
from trainenv.worldmodel.curves.law import Law, loss
from trainenv.worldmodel.curves.law_fit import (
    CENTRE,
    WIDTH,
    Scale,
    curve,
    fit,
    to_coordinates,
    to_law,
)

_STARTS = 5


@dataclass(frozen=True, kw_only=True)
class MultiPower:
    """Luo et al. 2025, arXiv:2503.12811.

    Args:
        law: what is believed beforehand; None for the default belief, which has no scale of its
            own.
        spread: width of the belief in parts of the default widths; 0 holds the law as it is. None
            for 0 with a law, else 1.
        anchored: whether the forecast starts from the level of the loss now.
        recent: share of the sum of learning rates so far before which rows are left out of the fit
            of one history: the beginning of a run follows no power law.
        relative_error: standard deviation of the error in parts of the forecast change, beside the
            fit's own doubt. The default is what pooled laws were off by on published curves that
            they had not been fitted on.

    Raises:
        UserError: a number is out of range.
    """

    law: Law | None = None
    spread: float | None = None
    anchored: bool = True
    recent: float = 0.1
    relative_error: float = 0.08

    def __post_init__(self) -> None:
        if self.spread is not None:
            number("spread", self.spread, least=0)
        if self.spread == 0 and self.law is None:
            raise UserError(
                "spread 0 holds a law, found none; give a law, or fit one with MultiPower().pooled(histories)"
            )
        number("recent", self.recent, least=0, below=1)
        number("relative_error", self.relative_error, least=0)

    def fit(self, history: History) -> FittedLaw:
        """Fit the law (unless it is held) and the level now."""
        seen = curve(history, recent=self.recent)
        if (
            not len(seen.sums) or not seen.greatest_lr
        ):  # nothing was learned yet that a law could speak of
            return fitted(history, None, relative_error=self.relative_error)
        if self.law is not None and not self.spread:
            return fitted(
                history, self.law, anchored=self.anchored, relative_error=self.relative_error
            )
        scale = Scale(seen.last_sum, seen.greatest_lr, history.last_loss)
        centre = CENTRE
        if self.law is not None:  # another model's: its level says nothing of this one's
            missed = float(np.mean(seen.losses - loss(self.law, seen.sums, seen.changes)))
            centre = to_coordinates(replace(self.law, L0=max(0.0, self.law.L0 + missed)), scale)
        x, covariance = fit(
            [seen], scale, centre, WIDTH * (1.0 if self.spread is None else self.spread), starts=2
        )
        doubt = math.hypot(self.relative_error, math.sqrt(max(float(covariance[3, 3]), 0.0)))
        return fitted(history, to_law(x, scale), anchored=self.anchored, relative_error=doubt)

    def pooled(self, histories: Sequence[History]) -> MultiPower:
        """This forecaster with the law that fits several curves of one model, held.

        Raises:
            UserError: no history has a measured row with a learning rate behind it.
        """
        curves = [one for one in map(curve, histories) if len(one.sums) and one.greatest_lr]
        if not curves:
            raise UserError(
                "a pooled law needs a history with a loss measured after steps with a learning rate, found none"
            )
        scale = Scale(
            max(one.last_sum for one in curves),
            max(one.greatest_lr for one in curves),
            min(float(one.losses[-1]) for one in curves),
        )
        centre = CENTRE if self.law is None else to_coordinates(self.law, scale)
        x, _ = fit(curves, scale, centre, WIDTH, starts=_STARTS)
        return replace(self, law=to_law(x, scale), spread=0.0)
