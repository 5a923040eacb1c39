"""The conformal quantile by trunk, and checks of the rows that are calibrated on.

The quantile for K trunks of N_k rows (hierarchical conformal prediction: Lee, Barber & Willett
2023, arXiv:2306.06342) is

    Q(1 − α) of  Σ_k Σ_i 1/((K + 1)·N_k) · δ(s_ki)  +  1/(K + 1) · δ(∞)

With one row per trunk it is the ⌈(n + 1)(1 − α)⌉-th smallest score. It is ∞ if K + 1 < 1/α. A
random row of a new trunk, exchangeable with the K, has a score at or below it with probability
≥ 1 − α, for any dependence between the rows of a trunk.
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
    """Return the smallest score with 1 − α of the mass at or below it; ∞ if no score has.

    The new row counts as a score of ∞.

    Args:
        scores: [n] scores; they may be infinite, and n may be 0.
        alpha: Share of the mass above the quantile, from 0 (always ∞) to below 1.
        trunks: [n] trunks of the rows; the rows of a trunk share the mass of one. None gives each
            row its own trunk.
        weights: [n] weights of the rows, relative to the new row, which has 1; None for 1.
    """
    share("alpha", alpha, least=0.0)
    if alpha == 0 or not np.size(scores):
        return math.inf
    (values,) = aligned(scores=scores)
    if trunks is None:
        trunks = np.arange(len(values))
    codes = trunk_codes(trunks, len(values))
    mass = 1 / np.bincount(codes)[codes]  # [n]
    if weights is not None:
        mass = mass * checked_weights(weights, len(values))
    order = np.argsort(values, kind="stable")
    below = np.cumsum(mass[order])
    total = below[-1] + 1
    # (1 − 0.7)·10 is 3.0000000000000004: without the tolerance its ceiling would be one too high.
    place = int(np.searchsorted(below, (1 - alpha - 1e-9) * total))
    if place == len(values):
        return math.inf
    return float(values[order[place]])


def aligned(**columns: ArrayLike) -> list[Array]:
    """Check columns and return them as float64 arrays of one length ≥ 1, without NaN, in order.

    `lower` and `upper` must be finite; other columns may be infinite.
    """
    arrays: list[Array] = []
    for name, column in columns.items():
        try:
            array = np.asarray(column, dtype=np.float64)
        except (TypeError, ValueError):
            raise UserError(f"{name} must be numbers, found {column!r:.80}") from None
        if array.ndim != 1 or not len(array):
            raise UserError(
                f"{name} must be a list of one number for each row, at least one, "
                f"found shape {array.shape}"
            )
        if arrays and len(array) != len(arrays[0]):
            raise UserError(
                f"{name} must have as many rows as {next(iter(columns))}, {len(arrays[0])}, "
                f"found {len(array)}"
            )
        if np.isnan(array).any():
            raise UserError(
                f"{name} must not be NaN, found NaN in row {np.isnan(array).argmax()}; "
                "leave out rows that were not measured"
            )
        if name in ("lower", "upper") and not np.isfinite(array).all():
            found = array[~np.isfinite(array)][0]
            raise UserError(
                f"{name} must be finite, found {found}; "
                "for one bound alone use sides='lower' or 'upper'"
            )
        arrays.append(array)
    return arrays


def checked_weights(weights: ArrayLike, count: int) -> Array:
    """Check weights and return them, [count], finite and at least 0."""
    (mass,) = aligned(weights=weights)
    if len(mass) != count or not np.isfinite(mass).all() or mass.min() < 0:
        raise UserError(
            f"weights must be {count} finite numbers ≥ 0 (the new row has 1), "
            f"found {mass.tolist()!r:.80}"
        )
    return mass


def trunk_codes(trunks: ArrayLike, count: int) -> NDArray[np.intp]:
    """Number the trunks of rows from 0, [count]."""
    names = np.asarray(trunks)
    if names.shape != (count,):
        raise UserError(
            f"trunks must name the run of each row, {count} in all, found shape {names.shape}"
        )
    if names.dtype.kind == "f" and np.isnan(names).any():
        raise UserError("trunks must not be NaN; give each run a name or a number")
    return np.unique(names, return_inverse=True)[1].astype(np.intp)


def ordered(lower: Array, upper: Array) -> tuple[Array, Array]:
    """Swap bounds that cross; a rearrangement of forecasts keeps all guarantees."""
    return np.minimum(lower, upper), np.maximum(lower, upper)


def share(name: str, value: float, *, least: float | None = None) -> float:
    """Return a value that is above 0 and below 1, or equal to `least`; refuse any other."""
    if not (isinstance(value, (int, float)) and (0 < value < 1 or value == least)):
        raise UserError(
            f"{name} must be above 0 and below 1, found {value!r}; 0.1 asks for 90 % coverage"
        )
    return float(value)


def plain(numbers: Iterable[float]) -> list[float | str]:
    """Return numbers as JSON values; infinite ones become "inf" and "-inf", which `float` reads."""
    return [_json_number(float(x)) for x in numbers]


def _json_number(x: float) -> float | str:
    if math.isfinite(x):
        return x
    return str(x)
