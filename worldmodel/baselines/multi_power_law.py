"""The multi-power law (Luo et al. 2025, arXiv:2503.12811), whose Δ's stand in the examples.

    anchored    Δ as the law of `trainenv.worldmodel.law_prior` says it, from the loss now pooled
    b·Δ on the scale of `scale`, with one b a target for all runs, by least squares: how strong the
    law really is

Deviation: the law by itself, without the anchor, is not told apart. The anchor is the same in every
branch, so it cancels in a difference of losses; of ln losses all but the few percent by which the
law's loss and the true one differ. Pooling is what is left to gain. The law sees learning rates
alone: of any other action it says Δ = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainenv.worldmodel.baselines.points import FittedPoints, Points, held_out, offsets
from trainenv.worldmodel.baselines.risk import Rates
from trainenv.worldmodel.baselines.scale import outcomes, squash
from trainenv.worldmodel.examples import Examples, Floats


@dataclass(frozen=True, kw_only=True)
class MultiPowerLaw:
    """The law's Δ.

    Args:
        pooled: whether its strength is fitted to the examples; the median then moves to the median
            of what happened.
    """

    pooled: bool = False

    def fit(self, examples: Examples) -> FittedPoints:
        """See `Baseline`."""
        spread = offsets(examples, held_out(self._strength, examples), centred=not self.pooled)
        return FittedPoints(
            points=self._strength(examples), offsets=spread, risks=Rates.of(examples)
        )

    def _strength(self, examples: Examples) -> Points:
        law = squash(examples.law)
        seen = outcomes(examples)
        with_law = ~np.isnan(seen) * (law != 0)
        products, squares = (
            np.where(with_law, law * other, 0.0).sum(axis=0) for other in (seen, law)
        )
        strengths = np.divide(products, squares, out=np.ones_like(squares), where=squares > 0)
        return _Scaled(strengths=strengths if self.pooled else np.ones_like(strengths))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scaled:
    strengths: Floats  # [3]

    def __call__(self, examples: Examples) -> Floats:
        return squash(examples.law) * self.strengths
