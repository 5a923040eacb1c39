"""The forecast that no intervention has an effect: Δ = 0.

Divergence, instability and recovery are forecast with their observed frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainenv.worldmodel.baselines.points import FittedPoints, held_out, no_difference, offsets
from trainenv.worldmodel.baselines.risk import Rates
from trainenv.worldmodel.examples import Examples


@dataclass(frozen=True, kw_only=True)
class DoNothing:
    """A baseline with the quantiles of the observed Δ as intervals, and the median fixed at 0."""

    def fit(self, examples: Examples) -> FittedPoints:
        """See `Baseline`."""
        spread = offsets(examples, held_out(lambda _: no_difference, examples), centred=True)
        return FittedPoints(points=no_difference, offsets=spread, risks=Rates.of(examples))
