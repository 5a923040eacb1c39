"""The multi-power law as a forecaster, optionally anchored at the level of the loss now.

An anchored forecast is the law's forecast plus (observed − predicted) now. This difference is its
level over the last rows (`level`) and not its last value: so the noise of single batches does not
move every forecast, and nothing is lost if rows are exact.

There are three ways to fit it:
- `MultiPower()` fits all seven parameters to the history, around a wide belief (`law_fit`). Before
  the first change of the learning rate, the effect of a change comes from the belief alone.
- `MultiPower().pooled(histories)` fits them to several curves of one model with different
  schedules; then they are fixed.
- `MultiPower(law=law, spread=1.0)` uses the law of another model as the centre of the belief.

    pooled = MultiPower().pooled([constant, cosine])
    pooled.fit(history).predict(steps, lrs)        # lrs [K, H]: K candidates

The standard deviation combines that of the level now, that of the level's walk from now on, and a
share of the forecast change: `relative_error`, and the fit's uncertainty of the gain of annealing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainenv.types import UserError
from trainenv.worldmodel.curves.contract import check_number
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
    """The multi-power law (Luo et al. 2025, arXiv:2503.12811).

    Args:
        law: Centre of the belief; None for the default belief, which is scaled to each history.
        spread: Width of the belief, relative to the default widths; 0 fixes the law. None means 0
            with a law and 1 without.
        anchored: True for forecasts that start from the level of the loss now.
        recent: Share of the sum of learning rates so far; earlier rows are left out of the fit of
            one history, because the beginning of a run follows no power law.
        relative_error: Standard deviation of the error, relative to the forecast change, in
            addition to the fit's own uncertainty. The default is the error of pooled laws on
            published curves that they had not been fitted on.

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
            check_number("spread", self.spread, least=0)
        if self.spread == 0 and self.law is None:
            raise UserError(
                "spread 0 fixes a law, found none; "
                "give a law, or fit one with MultiPower().pooled(histories)"
            )
        check_number("recent", self.recent, least=0, below=1)
        check_number("relative_error", self.relative_error, least=0)

    def fit(self, history: History) -> FittedLaw:
        """Fit the law, unless it is fixed, and the level now."""
        seen = curve(history, recent=self.recent)
        if not len(seen.sums) or not seen.greatest_lr:  # there is nothing to fit a law to
            return fitted(history, None, relative_error=self.relative_error)
        if self.law is not None and not self.spread:
            return fitted(
                history, self.law, anchored=self.anchored, relative_error=self.relative_error
            )
        scale = Scale(seen.last_sum, seen.greatest_lr, history.last_loss)
        centre = CENTRE
        width = WIDTH
        if self.law is not None:  # a law of another model, whose level does not apply to this one
            missed = float(np.mean(seen.losses - loss(self.law, seen.sums, seen.changes)))
            centre = to_coordinates(replace(self.law, L0=max(0.0, self.law.L0 + missed)), scale)
        if self.spread is not None:
            width = WIDTH * self.spread
        x, covariance = fit([seen], scale, centre, width, starts=2)
        error = math.hypot(self.relative_error, math.sqrt(max(float(covariance[3, 3]), 0.0)))
        return fitted(history, to_law(x, scale), anchored=self.anchored, relative_error=error)

    def pooled(self, histories: Sequence[History]) -> MultiPower:
        """Return this forecaster with a fixed law, fitted to several curves of one model.

        Raises:
            UserError: no history has a loss measured after steps with a learning rate above 0.
        """
        curves = [one for one in map(curve, histories) if len(one.sums) and one.greatest_lr]
        if not curves:
            raise UserError(
                "a pooled law needs a history with a loss measured after steps with a learning "
                "rate above 0, found none; give such a history"
            )
        scale = Scale(
            max(one.last_sum for one in curves),
            max(one.greatest_lr for one in curves),
            min(float(one.losses[-1]) for one in curves),
        )
        centre = CENTRE
        if self.law is not None:
            centre = to_coordinates(self.law, scale)
        x, _ = fit(curves, scale, centre, WIDTH, starts=_STARTS)
        return replace(self, law=to_law(x, scale), spread=0.0)
