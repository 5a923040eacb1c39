"""Forecasts of divergence, instability and recovery; the simplest are observed frequencies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainenv.types import DECISIONS
from trainenv.worldmodel.examples import LEVELS, Examples, Flags, Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Risk:
    """Forecasts of the risks of n branches, as in `Predictions`.

    Attributes:
        hazard: [n, 4] probability of diverging in each decision, if not before.
        instability: [n] probability that the uncertainty index fires.
        recovery: [n, 5] quantiles of the decisions until recovered.
    """

    hazard: Floats
    instability: Floats
    recovery: Floats

    def set(self, rows: Flags, rates: Rates) -> None:
        """Set the branches of a mask [n] to observed frequencies."""
        self.hazard[rows] = rates.hazard
        self.instability[rows] = rates.instability
        self.recovery[rows] = rates.recovery


Risks = Callable[[Examples], Risk]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rates:
    """Observed frequencies of divergence, instability and recovery.

    Attributes:
        hazard: [4] share of the branches that diverged in each decision, among those that had not
            diverged before.
        instability: Share of the branches in which the index fired.
        recovery: [5] quantiles of the decisions until recovered; 4 for those that had not.
    """

    hazard: Floats
    instability: float
    recovery: Floats

    @classmethod
    def of(cls, examples: Examples) -> Rates:
        """Count at least one branch, controls included."""
        when = np.where(examples.diverged >= 0, examples.diverged, DECISIONS)
        at_risk = np.array([(when >= decision).sum() for decision in range(DECISIONS)])
        lost = np.array([(when == decision).sum() for decision in range(DECISIONS)])
        return cls(
            hazard=lost / np.maximum(at_risk, 1),
            instability=float(examples.fired.mean()),
            recovery=np.quantile(recovery_times(examples), LEVELS, method="inverted_cdf"),
        )

    def __call__(self, examples: Examples) -> Risk:
        """Return the same risks for every branch."""
        count = len(examples)
        return Risk(
            hazard=np.tile(self.hazard, (count, 1)),
            instability=np.full(count, self.instability),
            recovery=np.tile(self.recovery, (count, 1)),
        )


def recovery_times(examples: Examples) -> Floats:
    """Return the decisions until recovered, [n]; 4 means 4 or more.

    A branch that was watched for less and had not recovered counts as 4.
    """
    return np.where(examples.recovered, np.minimum(examples.recovery, DECISIONS), float(DECISIONS))


def hazards(chance: Floats, shares: Floats) -> Floats:
    """Return hazards [n, 4] that together give a probability [n] of diverging.

    Args:
        chance: [n] probabilities of diverging within the horizon.
        shares: [4] share of the divergences in each decision; they sum to 1.
    """
    each = chance[:, None] * shares
    sound = 1 - np.cumsum(each, axis=1) + each
    return np.clip(each / np.maximum(sound, 1e-12), 0.0, 1.0)


def shares(examples: Examples) -> Floats:
    """Return the share of the divergences in each decision, [4]; all equal without divergences."""
    diverged = examples.diverged[examples.diverged >= 0]
    if not len(diverged):
        return np.full(DECISIONS, 1 / DECISIONS)
    counts = np.bincount(diverged, minlength=DECISIONS).astype(np.float64)
    found: Floats = counts / counts.sum()
    return found
