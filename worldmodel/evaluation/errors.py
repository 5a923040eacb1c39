"""Errors of forecasts: absolute error of the median, CRPS, coverage and width of the interval.

The continuous ranked probability score is the integral of the pinball loss over levels (Gneiting &
Ranjan 2011):

    CRPS ≈ 2 · Σ_k w_k · ρ_k(y − q_k),     ρ_τ(e) = max(τ·e, (τ − 1)·e)

w_k is the share of levels nearest to the k-th. For a forecast without spread the sum is exactly the
absolute error. Deviation: the weighted interval score (Bracher et al. 2021) gives all levels the
same weight; here they are unevenly spaced.
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
    """Return the absolute errors [n] of the medians of quantiles [n, 5]; NaN without an outcome."""
    error: Floats = np.abs(quantiles[:, MEDIAN] - outcome)
    return error


def crps(quantiles: Floats, outcome: Floats) -> Floats:
    """Return the CRPS [n] of quantiles [n, 5], in units of the outcome; NaN without an outcome."""
    beyond = outcome[:, None] - quantiles
    pinball = np.maximum(_AT * beyond, (_AT - 1) * beyond)  # [n, 5]
    score: Floats = 2 * pinball @ np.diff(_EDGES)
    return score


def covered(quantiles: Floats, outcome: Floats) -> Floats:
    """Return 1 where the outcome lies in the 90 % interval of quantiles [n, 5], else 0, [n].

    It is NaN without an outcome.
    """
    inside: NDArray[np.bool_] = (quantiles[:, 0] <= outcome) & (outcome <= quantiles[:, -1])
    return np.where(np.isnan(outcome), np.nan, inside.astype(np.float64))


def width(quantiles: Floats) -> Floats:
    """Return the widths [n] of the 90 % intervals of quantiles [n, 5]."""
    wide: Floats = quantiles[:, -1] - quantiles[:, 0]
    return wide
