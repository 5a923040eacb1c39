"""How far forecasts are from what happened: absolute error of the median, and the continuous ranked probability score.

    CRPS ≈ 2 · Σ_k w_k · ρ_k(y − q_k),     ρ_τ(e) = max(τ·e, (τ − 1)·e)

the integral over levels of the pinball loss (Gneiting & Ranjan 2011), where w_k is the share of
levels nearest to the k-th. For a forecast without spread it is the absolute error, exactly.
Deviation from the weighted interval score (Bracher et al. 2021), which weighs all levels alike:
ours lie unevenly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainenv.worldmodel.evaluation.statistics import Floats
from trainenv.worldmodel.examples import LEVELS

MEDIAN = LEVELS.index(0.5)
_AT = np.array(LEVELS)
_EDGES = np.concatenate([[0.0], (_AT[1:] + _AT[:-1]) / 2, [1.0]])


def absolute_error(quantiles: Floats, outcome: Floats) -> Floats:
    """[n] of the median of quantiles [n, 5]; NaN where there was no outcome [n]."""
    error: Floats = np.abs(quantiles[:, MEDIAN] - outcome)
    return error


def crps(quantiles: Floats, outcome: Floats) -> Floats:
    """[n] of quantiles [n, 5], in the units of the outcome [n]; NaN where there was none."""
    beyond = outcome[:, None] - quantiles
    pinball = np.maximum(_AT * beyond, (_AT - 1) * beyond)  # [n, 5]
    score: Floats = 2 * pinball @ np.diff(_EDGES)
    return score


def covered(quantiles: Floats, outcome: Floats) -> Floats:
    """[n] 1 where the outcome [n] lies in the 90 % interval of quantiles [n, 5], 0 where not, NaN where there was none."""
    inside: NDArray[np.bool_] = (quantiles[:, 0] <= outcome) & (outcome <= quantiles[:, -1])
    return np.where(np.isnan(outcome), np.nan, inside.astype(np.float64))


def width(quantiles: Floats) -> Floats:
    """[n] of the 90 % interval of quantiles [n, 5]."""
    wide: Floats = quantiles[:, -1] - quantiles[:, 0]
    return wide
