"""The multi-power law (Luo et al. 2025, arXiv:2503.12811) as a baseline; examples hold its Δ.

    anchored    Δ by the law of `trainenv.worldmodel.law_prior`, from the loss now
    pooled      b·Δ on the scale of `scale`; the strength b of each target is fitted to all runs
                by least squares

The law without the anchor is no separate baseline: the anchor is the same in every branch, so it
cancels in a difference of losses. In a difference of ln losses it cancels up to the few percent by
which the law's loss and the true loss differ.

The law sees learning rates only: for any other action its Δ is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainenv.worldmodel.baselines.points import FittedPoints, Points, held_out, offsets
from trainenv.worldmodel.baselines.risk import Rates
from trainenv.worldmodel.baselines.scale import outcomes, squash
from trainenv.worldmodel.examples import TARGETS, Examples, Floats


@dataclass(frozen=True, kw_only=True)
class MultiPowerLaw:
    """A baseline of Δ by the law.

    Args:
        pooled: True to fit the strength of the law to the examples; the median of the forecast then
            moves to the median of the outcomes.
    """

    pooled: bool = False

    def fit(self, examples: Examples) -> FittedPoints:
        """See `Baseline`."""
        spread = offsets(examples, held_out(self._strength, examples), centred=not self.pooled)
        risks = Rates.of(examples)
        return FittedPoints(points=self._strength(examples), offsets=spread, risks=risks)

    def _strength(self, examples: Examples) -> Points:
        strengths = np.ones(len(TARGETS))
        if self.pooled:
            law = squash(examples.law)
            seen = outcomes(examples)
            with_law = ~np.isnan(seen) * (law != 0)
            products = np.where(with_law, law * seen, 0.0).sum(axis=0)
            squares = np.where(with_law, law * law, 0.0).sum(axis=0)
            np.divide(products, squares, out=strengths, where=squares > 0)
        return _Scaled(strengths=strengths)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scaled:
    strengths: Floats  # [3]

    def __call__(self, examples: Examples) -> Floats:
        return squash(examples.law) * self.strengths
