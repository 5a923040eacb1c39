"""The conformal quantile, by trunk, and what every calibration asks of its rows.

Quantile (hierarchical conformal prediction: Lee, Barber & Willett 2023, arXiv:2306.06342), for K
trunks of N_k rows:

    Q(1 − α) of  Σ_k Σ_i 1/((K + 1)·N_k) · δ(s_ki)  +  1/(K + 1) · δ(∞)

With one row a trunk it is the ⌈(n + 1)(1 − α)⌉-th smallest score. Where K + 1 < 1/α it is ∞. A
random row of a new trunk, exchangeable with the K, has a score at or below it with probability ≥ 1
− α, however the rows of a trunk depend on one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainenv.types import UserError

Array = NDArray[np.float64]


def conformal_quantile(
    scores: ArrayLike,
    *,
    alpha: float,
    trunks: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> float:
    """The smallest score with 1 − α of the mass at or below it, the row to come counted as ∞; ∞ where no score is enough.

    Args:
        scores: [n]; may be infinite, and empty.
        alpha: from 0 (always ∞) to below 1.
        trunks: which trunk each belongs to, [n]; the rows of one share the mass of one. None: each
            its own.
        weights: of each row, [n]; the row to come has 1.
    """
    share("alpha", alpha, least=0.0)
    if alpha == 0 or not np.size(scores):
        return math.inf
    (values,) = aligned(scores=scores)
    codes = trunk_codes(np.arange(len(values)) if trunks is None else trunks, len(values))
    mass = (
        1
        / np.bincount(codes)[codes]
        * (1.0 if weights is None else checked_weights(weights, len(values)))
    )  # [n]
    order = np.argsort(values, kind="stable")
    below = np.cumsum(mass[order])
    total = below[-1] + 1
    # (1 − 0.7)·10 is 3.0000000000000004: without the tolerance its ceiling would be one too many.
    place = int(np.searchsorted(below, (1 - alpha - 1e-9) * total))
    return float(values[order[place]]) if place < len(values) else math.inf


def aligned(**columns: ArrayLike) -> list[Array]:
    """The columns as float64 arrays of one length ≥ 1 and without NaN, in order.

    Only an outcome or a risk may be infinite.
    """
    arrays: list[Array] = []
    for name, column in columns.items():
        try:
            array = np.asarray(column, dtype=np.float64)
        except (TypeError, ValueError):
            raise UserError(f"{name} must be numbers, found {column!r:.80}") from None
        if array.ndim != 1 or not len(array):
            raise UserError(
                f"{name} must be a list of one number a row, at least one, found shape {array.shape}"
            )
        if arrays and len(array) != len(arrays[0]):
            raise UserError(
                f"{name} must have as many rows as {next(iter(columns))}, {len(arrays[0])}, found {len(array)}"
            )
        if np.isnan(array).any():
            raise UserError(
                f"{name} must not be NaN, found in row {np.isnan(array).argmax()}; leave out what was not measured"
            )
        if name in ("lower", "upper") and not np.isfinite(array).all():
            found = array[~np.isfinite(array)][0]
            raise UserError(
                f"{name} must be finite, found {found}; for one bound alone use sides='lower' or 'upper'"
            )
        arrays.append(array)
    return arrays


def checked_weights(weights: ArrayLike, count: int) -> Array:
    """Weights, [count], finite and not negative."""
    (mass,) = aligned(weights=weights)
    if len(mass) != count or not np.isfinite(mass).all() or mass.min() < 0:
        raise UserError(
            f"weights must be {count} finite numbers ≥ 0 (the row to come has 1), found {mass.tolist()!r:.80}"
        )
    return mass


def trunk_codes(trunks: ArrayLike, count: int) -> NDArray[np.intp]:
    """Which trunk each row is of, [count], as numbers from 0."""
    names = np.asarray(trunks)
    if names.shape != (count,):
        raise UserError(
            f"trunks must name the run of each row, {count} in all, found shape {names.shape}"
        )
    if names.dtype.kind == "f" and np.isnan(names).any():
        raise UserError("trunks must not be NaN; give each run a name or a number")
    return np.unique(names, return_inverse=True)[1].astype(np.intp)


def ordered(lower: Array, upper: Array) -> tuple[Array, Array]:
    """Bounds that cross, swapped (a rearrangement of the forecasts, so nothing that is guaranteed changes)."""
    return np.minimum(lower, upper), np.maximum(lower, upper)


def share(name: str, value: float, *, least: float | None = None) -> float:
    """`value`, if it lies between 0 and 1, or is `least`."""
    if not (isinstance(value, (int, float)) and (0 < value < 1 or value == least)):
        raise UserError(
            f"{name} must be above 0 and below 1, found {value!r}; 0.1 asks for 90 % coverage"
        )
    return float(value)


def plain(numbers: Iterable[float]) -> list[float | str]:
    """As JSON values: infinite numbers as the strings "inf" and "-inf", for JSON has none; `float` reads both."""
    return [float(x) if math.isfinite(x) else str(float(x)) for x in numbers]
