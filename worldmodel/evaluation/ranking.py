"""Scores of the order in which the m options of one snapshot are forecast.

Equal forecasts count as if put in a random order, so a constant forecast gets the score of chance.
"""

from __future__ import annotations

import math

import numpy as np

from trainenv.worldmodel.evaluation.statistics import Floats


def spearman(forecast: Floats, outcome: Floats) -> float:
    """Return the correlation of the ranks of m forecasts and outcomes.

    It is 0 if all forecasts are equal, and NaN if all outcomes are.
    """
    from scipy.stats import rankdata

    middle = (len(outcome) + 1) / 2
    true_ranks = rankdata(outcome) - middle
    ranks = rankdata(forecast) - middle
    if not true_ranks.any():
        return math.nan
    if not ranks.any():
        return 0.0
    return float(true_ranks @ ranks / math.sqrt((true_ranks @ true_ranks) * (ranks @ ranks)))


def recall_of_best(forecast: Floats, outcome: Floats, top: int) -> float:
    """Return the probability that the best outcome is among the `top` < m lowest forecasts.

    If several outcomes are best, any of them counts.
    """
    best = outcome == outcome.min()
    limit = np.partition(forecast, top - 1)[top - 1]
    below = forecast < limit
    at = forecast == limit
    if (best & below).any():
        return 1.0
    left = top - int(below.sum())  # number of forecasts at the limit that are in the top
    return _hit(int(at.sum()), int((best & at).sum()), left)


def recall_by_chance(outcome: Floats, top: int) -> float:
    """Return the same probability for `top` of m options taken at random."""
    return _hit(len(outcome), int((outcome == outcome.min()).sum()), top)


def pick(scores: Floats) -> Floats:
    """Return the probability that each of m options is chosen, [m], if the lowest score is.

    Doing nothing, the first option, is chosen if no score is lower than its own.
    """
    lowest = scores == scores.min()
    if lowest[0]:
        lowest = np.arange(len(scores)) == 0
    chosen: Floats = lowest / lowest.sum()
    return chosen


def _hit(count: int, good: int, drawn: int) -> float:
    """Return the probability that `drawn` of `count` include at least one of the `good`."""
    return 1.0 - math.comb(count - good, drawn) / math.comb(count, drawn)
