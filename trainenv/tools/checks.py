"""Checks of hyperparameters, one sentence a mistake."""

from __future__ import annotations

import math

from trainenv.tools.spelling import nearest
from trainenv.types import UserError


def number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    least: float = -math.inf,
) -> float:
    """`value` as a finite float with above < value < below and value ≥ least.

    Raises:
        UserError: it is none.
    """
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and above < value < below
        and value >= least
    ):
        return float(value)
    limits = {"above": above, "at least": least, "below": below}
    bounds = " and ".join(
        f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit)
    )
    raise UserError(
        f"{name} must be a finite number {bounds}".rstrip()
        + f", found {value!r}; give one or leave it out"
    )


def count(name: str, value: object, *, least: int) -> int:
    """`value` as a whole number from `least` on; 25.0 counts as one, because a configuration file may hold it so.

    Raises:
        UserError: it is none.
    """
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and least <= value < math.inf
        and value == int(value)
    ):
        return int(value)
    raise UserError(
        f"{name} must be a whole number, at least {least}, found {value!r}; give one or leave it out"
    )


def choice(name: str, value: object, valid: tuple[str, ...]) -> None:
    """Refuse a value that is not among the valid ones.

    Raises:
        UserError: it is none of them; the nearest is named.
    """
    if value not in valid:
        raise UserError(
            f"{name} must be one of {', '.join(valid)}, found {value!r}{nearest(value, valid)}"
        )
