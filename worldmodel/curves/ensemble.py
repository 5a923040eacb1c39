"""A weighted ensemble of families of learning curves: the cheap pruner (Domhan, Springenberg & Hutter 2015).

    mean = Σ_i w_i·f_i          std² = Σ_i w_i·(f_i − mean)² + Σ_i w_i·e_i²·(ahead ÷ tested)² +
    variance of the level now

The paper samples weights and parameters together with MCMC. Here each family is fitted by least
squares (`families`), later rows weighing more, as in the paper's code (10 to the share of the run
so far); once on the first three quarters of the rows, which gives its error e_i on the last quarter
and its weight ∝ 1/e_i², then on all of them. The error of a forecast is taken to grow with how far
ahead it looks, beyond the distance at which the family was tested.

These curves know nothing of the learning rate: they forecast that a schedule goes on as it did. Use
them to drop what has gone wrong, not to choose between learning rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from trainenv.types import UserError
from trainenv.worldmodel.curves.contract import CurveForecast, number, positive
from trainenv.worldmodel.curves.families import DOMHAN, FAMILIES, Fit
from trainenv.worldmodel.curves.history import Floats, History, futures, wanted
from trainenv.worldmodel.curves.level import Level, level

_ROWS = 64  # means of neighbours that are fitted
_FEWEST = 8  # rows below which the level is all that is forecast
_TESTED = 0.25  # of the rows, the last


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Families weighted by how they forecast the last quarter of the history from the rest.

    Args:
        families: names, at least one of `families.FAMILIES`.
        recency: how many times the weight of the beginning of the run the last row has; at least 1.

    Raises:
        UserError: no family is named, or one that does not exist, or recency is out of range.
    """

    families: tuple[str, ...] = DOMHAN
    recency: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", tuple(self.families))
        if not self.families or set(self.families) - set(FAMILIES):
            raise UserError(
                f"families must be some of {', '.join(FAMILIES)}, found {', '.join(self.families) or 'none'}"
            )
        number("recency", self.recency, least=1)

    def fit(self, history: History) -> FittedEnsemble:
        """Fit every family twice; fewer than 8 measured rows give the level alone."""
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
        # below the noise all are alike
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
    """What `Ensemble.fit` returns.

    Args:
        history: what is known.
        now: level of the losses now.
        fits: a curve a family; none where the level is all that is known.
        weights: [F] of the families, summing to 1.
        errors: [F] root mean square of their errors on the last quarter, nats.
        tested: steps from the last row but that quarter to now.
        highest: the greatest loss so far, which no forecast exceeds, in nats.
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
        """The same for every candidate: learning rates are checked and not used; see `FittedCurve`."""
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
        forecast = positive(mean, std, self.history.last_loss)
        return CurveForecast(
            *(np.broadcast_to(part, (*rates.shape[:-1], len(ahead))).copy() for part in forecast)
        )


def _bounded(losses: Floats, highest: float) -> Floats:
    """Losses as they can be: above 0, and no higher than any so far."""
    return np.clip(np.nan_to_num(losses, nan=highest), 1e-6 * min(highest, 1.0), highest)


def _rms(errors: Floats) -> float:
    return float(np.sqrt(np.mean(errors**2)))
