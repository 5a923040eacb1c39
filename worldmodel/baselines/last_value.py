"""Persistence: the present state continues.

The loss keeps its value in every branch, so Δ = 0. An index that fires continues to fire, and a
loss above its best stays above it. Taken literally, the last two would be forecasts of 0 and 1. The
observed frequencies are used instead, given that the state holds now and given that it does not:
this is the strongest form of the claim.
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

LEAST = 20  # fewest branches that give a frequency


@dataclass(frozen=True, kw_only=True)
class LastValue:
    """A baseline with Δ = 0, and risks by the present state.

    Args:
        tolerance: Distance of ln loss from its best above which it counts as above.
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
            risks=PersistenceRisks(
                tolerance=self.tolerance, rates=rates, otherwise=Rates.of(examples)
            ),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PersistenceRisks:
    """Frequencies by the present state.

    Attributes:
        tolerance: Distance of ln loss from its best above which it counts as above.
        rates: Frequencies by the code of the state, see `_now`.
        otherwise: Frequencies for states that were rare.
    """

    tolerance: float
    rates: Mapping[int, Rates]
    otherwise: Rates

    def __call__(self, examples: Examples) -> Risk:
        """See `Risks`."""
        now = _now(examples, self.tolerance)
        risk = self.otherwise(examples)
        for key, rates in self.rates.items():
            risk.set(now == key, rates)
        return risk


def _now(examples: Examples, tolerance: float) -> Ints:
    """Return the code of each branch's state, [n].

    It is 1 if the index fired within the last decision, plus 2 if the loss is above its best; a
    value that was not measured counts as no.
    """
    states = examples.states[examples.snapshot]
    fired = states[:, STATE.index("fired_recency")] >= math.exp(-1)
    above = states[:, STATE.index("above_best")] > tolerance
    return fired + 2 * above.astype(np.int64)
