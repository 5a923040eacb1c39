"""The seed noise: how far runs come apart that nobody steered differently.

    noise of a kind  =  1.4826 · median |Δ|  of its replicated controls: weights nudged by one ulp, or data reordered
    seed noise       =  the greater of the two, at least 1e-4

Δ is ln loss less the control's. The median, because some replicas diverge and would be all that a
root mean square tells of; the factor makes it the standard deviation of a normal law. The greater,
because in a calm run a nudge changes nothing for hundreds of steps, which does not make the order
of its data matter. Taken of the same trunk where that has 4 replicas of a kind, else of the same
stratum (setting/origin), else of the same setting, else of all.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trainenv.worldmodel.evaluation.statistics import Floats
from trainenv.worldmodel.examples import TARGETS, Examples

REPLICAS = ("nudged", "reordered")
LEAST_REPLICAS = 4
LEAST_NOISE = 1e-4  # of ln loss: what validation on a thousand tokens cannot tell from nothing
MATTERS = 2.0  # times the seed noise


def truths(examples: Examples) -> Floats:
    """[n, 3] Δ ln loss, in the order of `TARGETS`."""
    return np.stack([getattr(examples, target) for target in TARGETS], axis=1)


def seed_noise(examples: Examples) -> Floats:
    """[n, 3] seed noise of each branch's Δ ln loss, in the order of `TARGETS`; NaN for a target that no replica measured.

    Taken of few trunks it is rough: take it of the whole data set, and then the rows that are
    evaluated.
    """
    strata = examples.strata[examples.snapshot]
    settings = np.array([name.partition("/")[0] for name in strata], dtype=str)
    everyone = np.zeros(len(examples), dtype=np.int64)
    found = np.full((len(examples), len(TARGETS)), math.nan)
    for place, delta in enumerate(truths(examples).T):
        for keys in (examples.trunk, strata, settings, everyone):
            open_rows = np.isnan(found[:, place])
            for key in np.unique(keys[open_rows]):
                rows = keys == key
                found[rows & open_rows, place] = _spread(
                    delta[rows], examples.kind[rows], everyone=keys is everyone
                )
    return found


def matters(examples: Examples, noise: Floats) -> NDArray[np.bool_]:
    """[n, 3] where the intervention matters: |Δ ln loss| is above 2 × the seed noise."""
    with np.errstate(invalid="ignore"):
        return np.abs(truths(examples)) > MATTERS * noise


def _spread(delta: Floats, kind: NDArray[np.str_], *, everyone: bool) -> float:
    """Of the replicas among some branches; NaN where there are too few.

    Of all branches together, any number is enough.
    """
    spreads = []
    for name in REPLICAS:
        replicas = delta[(kind == name) & ~np.isnan(delta)]
        if len(replicas) >= (1 if everyone else LEAST_REPLICAS):
            spreads.append(1.4826 * float(np.median(np.abs(replicas))))
    return max(*spreads, LEAST_NOISE) if spreads else math.nan
