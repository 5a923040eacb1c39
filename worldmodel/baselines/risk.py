"""What is said beside Δ, of divergence, instability and recovery: at the least, how often it happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainenv.worldmodel.examples import LEVELS, Examples, Floats
from trainenv.worldmodel.features import DECISIONS


@dataclass(frozen=True, kw_only=True, eq=False)
class Risk:
    """As in `Predictions`: hazard [n, 4], instability [n], recovery [n, 5]."""

    hazard: Floats
    instability: Floats
    recovery: Floats


Risks = Callable[[Examples], Risk]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rates:
    """How often things happened.

    Attributes:
        hazard: [4] of the branches sound until a decision, the share that diverged in it.
        instability: share in which the index fired.
        recovery: [5] quantiles of the decisions until recovered, 4 where it was not.
    """

    hazard: Floats
    instability: float
    recovery: Floats

    @classmethod
    def of(cls, examples: Examples) -> Rates:
        """Of at least one branch, controls among them."""
        when = np.where(examples.diverged >= 0, examples.diverged, DECISIONS)
        at_risk = np.array([(when >= decision).sum() for decision in range(DECISIONS)])
        lost = np.array([(when == decision).sum() for decision in range(DECISIONS)])
        return cls(
            hazard=lost / np.maximum(at_risk, 1),
            instability=float(examples.fired.mean()),
            recovery=np.quantile(recovery_times(examples), LEVELS, method="inverted_cdf"),
        )

    def __call__(self, examples: Examples) -> Risk:
        """The same for every branch."""
        count = len(examples)
        return Risk(
            hazard=np.tile(self.hazard, (count, 1)),
            instability=np.full(count, self.instability),
            recovery=np.tile(self.recovery, (count, 1)),
        )


def recovery_times(examples: Examples) -> Floats:
    """[n] decisions until recovered; 4 stands for 4 or more, so what was watched for less and had not recovered counts as 4."""
    return np.where(examples.recovered, np.minimum(examples.recovery, DECISIONS), float(DECISIONS))


def hazards(chance: Floats, shares: Floats) -> Floats:
    """[n, 4] hazards that make up a chance [n] of diverging, spread over the decisions in `shares` [4], which sum to 1."""
    each = chance[:, None] * shares
    sound = 1 - np.cumsum(each, axis=1) + each
    return np.clip(each / np.maximum(sound, 1e-12), 0.0, 1.0)


def shares(examples: Examples) -> Floats:
    """[4] in which decision divergences fall; all alike where there was none."""
    counts = np.bincount(examples.diverged[examples.diverged >= 0], minlength=DECISIONS).astype(
        np.float64
    )
    return counts / counts.sum() if counts.sum() else np.full(DECISIONS, 1 / DECISIONS)
