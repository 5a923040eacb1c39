"""What is so now stays so: the loss keeps its value in every branch, and Δ = 0; an index that fires goes on firing, a loss above
its best stays above it.

Taken literally, the last two would be forecasts of 0 and 1. What is used instead is how often each
came true where it was so, and where it was not: the strongest form of the claim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainenv.worldmodel.baselines.points import FittedPoints, held_out, no_difference, offsets
from trainenv.worldmodel.baselines.risk import Rates, Risk
from trainenv.worldmodel.examples import Examples, Ints
from trainenv.worldmodel.features import STATE

LEAST = 20  # branches from which a frequency is taken


@dataclass(frozen=True, kw_only=True)
class LastValue:
    """Δ = 0; risks by what is so now.

    Args:
        tolerance: of ln loss above its best, from which it counts as above.
    """

    tolerance: float = 0.01

    def fit(self, examples: Examples) -> FittedPoints:
        """See `Baseline`."""
        now = _now(examples, self.tolerance)
        groups = {int(key): now == key for key in np.unique(now)}
        rates = {
            key: Rates.of(examples.where(rows))
            for key, rows in groups.items()
            if rows.sum() >= LEAST
        }
        return FittedPoints(
            points=no_difference,
            offsets=offsets(examples, held_out(lambda _: no_difference, examples), centred=True),
            risks=Persisting(tolerance=self.tolerance, rates=rates, otherwise=Rates.of(examples)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Persisting:
    """Frequencies by what is so now; `otherwise` for what was seldom so."""

    tolerance: float
    rates: Mapping[int, Rates]
    otherwise: Rates

    def __call__(self, examples: Examples) -> Risk:
        """See `Risks`."""
        now = _now(examples, self.tolerance)
        risk = self.otherwise(examples)
        for key, rates in self.rates.items():
            rows = now == key
            risk.hazard[rows], risk.instability[rows], risk.recovery[rows] = (
                rates.hazard,
                rates.instability,
                rates.recovery,
            )
        return risk


def _now(examples: Examples, tolerance: float) -> Ints:
    """[n] 1 where the index fired within the last decision, plus 2 where the loss is above its best; NaN is not."""
    states = examples.states[examples.snapshot]
    fired = states[:, STATE.index("fired_recency")] >= math.exp(-1)
    above = states[:, STATE.index("above_best")] > tolerance
    return fired + 2 * above.astype(np.int64)
