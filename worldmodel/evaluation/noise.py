"""The seed noise: differences between runs that had the same interventions.

    noise of a kind  =  1.4826 · median |Δ| of its replicated controls
    seed noise       =  the greater of the two kinds, at least 1e-4

The kinds of replicas are controls with weights nudged by one ulp, and controls with reordered data.
Δ is the difference of ln loss to the control. The median is used because some replicas diverge and
would dominate a root mean square; the factor turns it into the standard deviation of a normal law.
The greater kind is used because in a calm run a nudge changes nothing for hundreds of steps, while
the order of the data still matters.

The noise is taken from the same trunk if it has 4 replicas of a kind, else from the same stratum
(setting/origin), else from the same setting, else from all branches.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trainenv.worldmodel.evaluation.statistics import Floats
from trainenv.worldmodel.examples import TARGETS, Examples

REPLICAS = ("nudged", "reordered")
LEAST_REPLICAS = 4
LEAST_NOISE = 1e-4  # ln loss; validation on a thousand tokens cannot resolve less
MATTERS = 2.0  # an intervention matters if |Δ| is above this multiple of the seed noise


def truths(examples: Examples) -> Floats:
    """Return the true Δ ln loss, [n, 3] in the order of `TARGETS`."""
    return np.stack([getattr(examples, target) for target in TARGETS], axis=1)


def seed_noise(examples: Examples) -> Floats:
    """Estimate the seed noise of each branch's Δ ln loss, [n, 3] in the order of `TARGETS`.

    It is NaN for a target that no replica measured. Few trunks give a rough estimate: compute it on
    the whole data set and select the rows to evaluate.
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
    """Return a mask [n, 3] of interventions that matter: |Δ ln loss| is above 2 × the noise."""
    with np.errstate(invalid="ignore"):
        return np.abs(truths(examples)) > MATTERS * noise


def _spread(delta: Floats, kind: NDArray[np.str_], *, everyone: bool) -> float:
    """Return the noise of the replicas among some branches; NaN if there are too few.

    Args:
        delta: [n] Δ ln loss of the branches.
        kind: [n] kinds of the branches.
        everyone: True for all branches together, of which any number of replicas is enough.
    """
    least = LEAST_REPLICAS
    if everyone:
        least = 1
    spreads = []
    for name in REPLICAS:
        replicas = delta[(kind == name) & ~np.isnan(delta)]
        if len(replicas) >= least:
            spreads.append(1.4826 * float(np.median(np.abs(replicas))))
    if not spreads:
        return math.nan
    return max(*spreads, LEAST_NOISE)
