"""A weighted ensemble of families of learning curves: the cheap pruner.

Domhan, Springenberg & Hutter 2015.

    mean = Σ_i w_i·f_i
    std² = Σ_i w_i·(f_i − mean)² + Σ_i w_i·e_i²·(ahead ÷ tested)² + variance of the level now

The paper samples weights and parameters together with MCMC. Here each family is fitted twice by
least squares (`families`). The first fit uses the first three quarters of the rows; its error on
the last quarter is e_i, and its weight is ∝ 1/e_i². The second fit uses all rows. Later rows weigh
more, as in the paper's code: 10 to the power of the share of the run so far. The error of a
forecast grows with its distance, beyond the distance at which the family was tested.

These curves do not depend on the learning rate: they forecast that the schedule continues as
before. Use them to drop candidates that have failed, not to choose between learning rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from trainenv.types import UserError
from trainenv.worldmodel.curves.contract import CurveForecast, bounded_forecast, check_number
from trainenv.worldmodel.curves.families import DOMHAN, FAMILIES, Fit
from trainenv.worldmodel.curves.history import Floats, History, futures, wanted
from trainenv.worldmodel.curves.level import Level, level

_ROWS = 64  # fitted rows; each is a mean of neighbouring rows of the history
_FEWEST = 8  # with fewer rows the forecast is the level alone
_TESTED = 0.25  # share of the rows, at the end, that families are tested on


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Families weighted by how they forecast the last quarter of the history from the rest.

    Args:
        families: Names of families in `families.FAMILIES`, at least one.
        recency: Weight of the last row, relative to the beginning of the run; at least 1.

    Raises:
        UserError: no family is named, a family does not exist, or recency is out of range.
    """

    families: tuple[str, ...] = DOMHAN
    recency: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", tuple(self.families))
        if not self.families or set(self.families) - set(FAMILIES):
            raise UserError(
                f"families must be some of {', '.join(FAMILIES)}, "
                f"found {', '.join(self.families) or 'none'}"
            )
        check_number("recency", self.recency, least=1)

    def fit(self, history: History) -> FittedEnsemble:
        """Fit every family twice; with fewer than 8 measured rows forecast the level alone."""
        steps, losses = history.means(_ROWS)
        now = level(losses)
        if len(steps) < _FEWEST:
            return FittedEnsemble(
                history=history,
                now=now,
                fits=(),
                weights=np.ones(1),
                errors=np.zeros(1),
                tested=1.0,
            )
        x = steps + 1.0
        split = len(x) - max(2, round(_TESTED * len(x)))
        highest = float(losses.max())

        def fits(rows: int) -> tuple[Fit, ...]:
            weights = self.recency ** (x[:rows] / x[rows - 1] - 1)
            return tuple(
                FAMILIES[name].fit(x[:rows], losses[:rows], weights / weights.sum())
                for name in self.families
            )

        errors = [
            _rms(_bounded(early(x[split:]), highest) - losses[split:]) for early in fits(split)
        ]
        # Errors below the noise do not tell families apart.
        squares = np.maximum(errors, max(np.sqrt(now.noise), 1e-9 * highest)) ** 2
        return FittedEnsemble(
            history=history,
            now=now,
            fits=fits(len(x)),
            weights=(1 / squares) / (1 / squares).sum(),
            errors=np.array(errors),
            tested=float(x[-1] - x[split - 1]),
            highest=highest,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedEnsemble:
    """An ensemble fitted to a history.

    Args:
        history: History that it was fitted to.
        now: Level of the losses now.
        fits: Fitted curves, one per family; empty if only the level is forecast.
        weights: [F] weights of the families; they sum to 1.
        errors: [F] root mean square errors of the families on the last quarter, in nats.
        tested: Steps from the last row before that quarter to now.
        highest: Greatest loss so far, in nats; no forecast exceeds it.
    """

    history: History
    now: Level
    fits: tuple[Fit, ...]
    weights: Floats
    errors: Floats
    tested: float
    highest: float = np.inf

    def predict(
        self, steps: ArrayLike, lrs: ArrayLike, at: Sequence[int] | None = None
    ) -> CurveForecast:
        """Forecast the same for every candidate; learning rates are only checked.

        See `FittedCurve`.
        """
        ahead, rates = futures(self.history, steps, lrs)
        ahead = ahead[wanted(ahead, at)]
        curves = np.stack(
            [_bounded(fit(ahead + 1.0), self.highest) for fit in self.fits]
            or [np.full(len(ahead), self.now.mean)]
        )
        mean = self.weights @ curves  # [Q]
        further = np.maximum(1.0, (ahead - self.history.now) / self.tested)
        spread = self.weights @ (curves - mean) ** 2 + self.weights @ self.errors**2 * further**2
        std = np.sqrt(spread + self.now.variance)
        forecast = bounded_forecast(mean, std, self.history.last_loss)
        shape = (*rates.shape[:-1], len(ahead))
        return CurveForecast(*(np.broadcast_to(part, shape).copy() for part in forecast))


def _bounded(losses: Floats, highest: float) -> Floats:
    """Clip losses to values above 0 and at most the highest loss so far."""
    return np.clip(np.nan_to_num(losses, nan=highest), 1e-6 * min(highest, 1.0), highest)


def _rms(errors: Floats) -> float:
    return float(np.sqrt(np.mean(errors**2)))
