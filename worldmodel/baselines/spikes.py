"""The anchored multi-power law, corrected at spikes.

Below a threshold of the uncertainty index the forecast is that of the law. Above it, something
happens that a law of smooth curves cannot describe. Then the mean error of the law at earlier
spikes is added, for each group of actions. Careful engineers work in this way by hand (PaLM, OPT:
do nothing until the loss spikes, then do what helped before); here the numbers are learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainenv.types import UserError
from trainenv.worldmodel.baselines.groups import GroupMeans
from trainenv.worldmodel.baselines.points import FittedPoints, held_out, offsets
from trainenv.worldmodel.baselines.risk import Rates, Risk
from trainenv.worldmodel.baselines.scale import outcomes, squash
from trainenv.worldmodel.examples import Examples, Flags, Floats
from trainenv.worldmodel.features import STATE


@dataclass(frozen=True, kw_only=True)
class SpikeThreshold:
    """A baseline of the law with a correction and its own frequencies of risks at spikes.

    Args:
        threshold: Greatest index within the last decision from which a state is a spike, in units
            of the index's trigger τ = 2.5 (`features`).
        weight: Number of branches that the mean which a group is shrunk to counts for; above 0.

    Raises:
        UserError: a number is not above 0.
    """

    threshold: float = 1.0
    weight: float = 5.0

    def __post_init__(self) -> None:
        for name in ("threshold", "weight"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, found {getattr(self, name)!r}")

    def fit(self, examples: Examples) -> FittedPoints:
        """See `Baseline`."""
        spread = offsets(examples, held_out(self._law, examples), centred=True)
        spiking = _spiking(examples, self.threshold)
        risks = _SpikeRisks(
            threshold=self.threshold,
            spike=_rates(examples, spiking),
            calm=_rates(examples, ~spiking),
        )
        return FittedPoints(points=self._law(examples), offsets=spread, risks=risks)

    def _law(self, examples: Examples) -> _CorrectedLaw:
        spiking = _spiking(examples, self.threshold)
        errors = np.where(spiking[:, None], outcomes(examples) - squash(examples.law), np.nan)
        means = GroupMeans.of(examples, errors, weight=self.weight)
        return _CorrectedLaw(threshold=self.threshold, means=means)


def _rates(examples: Examples, rows: Flags) -> Rates:
    """Return the frequencies of the branches of a mask; those of all if the mask is empty."""
    if not rows.any():
        return Rates.of(examples)
    return Rates.of(examples.where(rows))


@dataclass(frozen=True, kw_only=True, eq=False)
class _CorrectedLaw:
    threshold: float
    means: GroupMeans

    def __call__(self, examples: Examples) -> Floats:
        spiking = _spiking(examples, self.threshold)
        correction = np.where(spiking[:, None], self.means(examples), 0.0)
        return squash(examples.law) + correction


@dataclass(frozen=True, kw_only=True, eq=False)
class _SpikeRisks:
    threshold: float
    spike: Rates
    calm: Rates

    def __call__(self, examples: Examples) -> Risk:
        risk = self.calm(examples)
        risk.set(_spiking(examples, self.threshold), self.spike)
        return risk


def _spiking(examples: Examples, threshold: float) -> Flags:
    """Return a mask [n]: the index reached the threshold in the decision before the snapshot."""
    spiking: Flags = examples.states[examples.snapshot, STATE.index("index_most")] >= threshold
    return spiking
