"""Whether the candidates of a snapshot are forecast in their right order.

Every function is about one snapshot.

Equal forecasts are in no order: they count as if put in any order at random, so a constant forecast
gets what chance gets.
"""

from __future__ import annotations

import math

import numpy as np

from trainenv.worldmodel.evaluation.statistics import Floats


def spearman(forecast: Floats, outcome: Floats) -> float:
    """Correlation of the ranks of m forecasts and outcomes; 0 where all forecasts are alike, NaN where all outcomes are."""
    from scipy.stats import rankdata

    known, told = (rankdata(values) - (len(values) + 1) / 2 for values in (outcome, forecast))
    if not known.any():
        return math.nan
    if not told.any():
        return 0.0
    return float(known @ told / math.sqrt((known @ known) * (told @ told)))


def recall_of_best(forecast: Floats, outcome: Floats, top: int) -> float:
    """The chance that the best of m outcomes (any of them, where several are best) is among the `top` < m lowest forecasts."""
    best = outcome == outcome.min()
    limit = np.partition(forecast, top - 1)[top - 1]
    below = forecast < limit
    at = forecast == limit
    if (best & below).any():
        return 1.0
    left = top - int(below.sum())  # places for the forecasts at the limit
    return _hit(int(at.sum()), int((best & at).sum()), left)


def recall_by_chance(outcome: Floats, top: int) -> float:
    """The same for `top` of m candidates taken at random."""
    return _hit(len(outcome), int((outcome == outcome.min()).sum()), top)


def pick(scores: Floats) -> Floats:
    """[m] the chance that each candidate is chosen by its score: the lowest; doing nothing (the first) where nothing is lower."""
    lowest = scores == scores.min()
    if lowest[0]:
        lowest = np.arange(len(scores)) == 0
    chosen: Floats = lowest / lowest.sum()
    return chosen


def _hit(count: int, good: int, drawn: int) -> float:
    """The chance that some of `good` among `count` are among `drawn` of them."""
    return 1.0 - math.comb(count - good, drawn) / math.comb(count, drawn)
