"""The anchored multi-power law, and a threshold for spikes beside it.

Below the threshold of the uncertainty index the law speaks alone. Above it something is wrong that
no law of smooth curves knows of, and what actions did at spikes before, beyond the law, is added:
the mean error of the law in each group of actions. It is what a careful person does by hand (PaLM,
OPT: do nothing about it until it spikes, then what has helped before), with the numbers learned.
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
    """The law, corrected at spikes; the frequencies of divergence and the like are of spikes and of the rest, each its own.

    Args:
        threshold: of the greatest index within the last decision, in units of its trigger τ = 2.5
            (`features`).
        weight: how many branches the mean that a group's is shrunk to counts for; above 0.

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
        whole = Rates.of(examples)
        spike, calm = (
            Rates.of(examples.where(rows)) if rows.any() else whole for rows in (spiking, ~spiking)
        )
        risks = _BySpike(threshold=self.threshold, spike=spike, calm=calm)
        return FittedPoints(points=self._law(examples), offsets=spread, risks=risks)

    def _law(self, examples: Examples) -> _Corrected:
        wrong = np.where(
            _spiking(examples, self.threshold)[:, None],
            outcomes(examples) - squash(examples.law),
            np.nan,
        )
        return _Corrected(
            threshold=self.threshold, means=GroupMeans.of(examples, wrong, weight=self.weight)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Corrected:
    threshold: float
    means: GroupMeans

    def __call__(self, examples: Examples) -> Floats:
        correction = np.where(
            _spiking(examples, self.threshold)[:, None], self.means(examples), 0.0
        )
        return squash(examples.law) + correction


@dataclass(frozen=True, kw_only=True, eq=False)
class _BySpike:
    threshold: float
    spike: Rates
    calm: Rates

    def __call__(self, examples: Examples) -> Risk:
        risk = self.calm(examples)
        rows = _spiking(examples, self.threshold)
        risk.hazard[rows], risk.instability[rows], risk.recovery[rows] = (
            self.spike.hazard, self.spike.instability, self.spike.recovery,
        )  # fmt: skip
        return risk


def _spiking(examples: Examples, threshold: float) -> Flags:
    """[n] whether the index was above the threshold within the last decision before the snapshot."""
    spiking: Flags = examples.states[examples.snapshot, STATE.index("index_most")] >= threshold
    return spiking
