"""Reduction of points that keeps the look of a figure, so that reports of long runs stay small."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Line = tuple[NDArray[np.float64], NDArray[np.float64]]


def floats(values: pd.Series[Any]) -> NDArray[np.float64]:
    """Return a column as numbers; missing values are NaN."""
    return np.asarray(values, dtype=np.float64)


def smoothed(values: pd.Series[float], alpha: float = 0.12) -> pd.Series[float]:
    """Return the exponential average over the steps so far; it never rises before its cause.

    It lags by about 1 ÷ `alpha` steps. Values that are not finite are skipped.

    Args:
        values: Values of consecutive steps.
        alpha: Weight of the newest value.
    """
    known = values.where(np.isfinite(values))
    average: pd.Series[float] = known.ewm(alpha=alpha).mean()
    return average


def bucketed(x: NDArray[np.float64], y: NDArray[np.float64], count: int) -> Line:
    """Average stretches of equal length, so that at most `count` points remain.

    Each mean is drawn at the last step of its stretch, so that nothing is drawn before it happened.
    The first and the last point are kept; NaN is left out of the means.
    """
    if len(x) <= count:
        return x, y
    edges = np.linspace(0, len(x), count - 1).astype(np.int64)
    known = np.isfinite(y)
    sums = np.add.reduceat(np.where(known, y, 0.0), edges[:-1])
    counts = np.add.reduceat(known.astype(np.float64), edges[:-1])
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    ends = x[edges[1:] - 1]
    return np.concatenate((x[:1], ends, x[-1:])), np.concatenate((y[:1], means, y[-1:]))


def cloud(x: NDArray[np.float64], y: NDArray[np.float64], count: int) -> Line:
    """Choose about `count` points that look like all of them, in order: every n-th, and outliers.

    An outlier is further from the median of its stretch than 6 times the median distance, so a
    spike of one step is never lost. At most the lowest and the highest point of each stretch are
    added. NaN and infinities are left out.
    """
    known = np.isfinite(y)
    x = x[known]
    y = y[known]
    if len(x) <= count:
        return x, y
    chosen = set(range(0, len(x), -(-len(x) // count)))
    edges = np.linspace(0, len(x), max(count // 2, 1) + 1).astype(np.int64)
    for a, b in pairwise(edges.tolist()):
        part = y[a:b]
        distance = np.abs(part - np.median(part))
        far = 6 * float(np.median(distance))
        chosen |= {
            a + int(place) for place in (part.argmin(), part.argmax()) if distance[place] > far
        }
    places = sorted(chosen)
    return x[places], y[places]
