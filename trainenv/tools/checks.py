"""Checks of hyperparameters: each error names the valid values and the one found."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable
from dataclasses import fields
from numbers import Real
from typing import Any

from trainenv.tools.spelling import nearest
from trainenv.types import UserError
from trainenv.types.numbers import scalar


def number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> float:
    """Return a hyperparameter as a finite float within its limits.

    Numbers of NumPy, and arrays and tensors of one element, are accepted; True and False are not.

    Args:
        name: Name of the hyperparameter, for the error.
        value: Value of the hyperparameter.
        above: Limit that the value must exceed.
        least: Least value.
        below: Limit that the value must stay below.
        most: Greatest value.

    Raises:
        UserError: The value is not such a number.
    """
    found = _real(value)
    if math.isfinite(found) and above < found < below and least <= found <= most:
        return found
    limits = {"above": above, "at least": least, "below": below, "at most": most}
    bounds = [f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit)]
    kind = ", ".join(filter(None, ("a finite number", " and ".join(bounds))))
    raise UserError(f"{name} must be {kind}, found {value!r:.80}; give one or leave it out")


def whole(name: str, value: object, *, least: int) -> int:
    """Return a hyperparameter that is an integer, Python's or NumPy's, from `least` on.

    Raises:
        UserError: The value is not such an integer; 25.0 is refused too.
    """
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = least - 1
    if isinstance(value, bool) or found < least:
        raise UserError(
            f"{name} must be a whole number, at least {least}, found {value!r:.80}; "
            "give one or leave it out"
        )
    return found


def count(name: str, value: object, *, least: int) -> int:
    """Return a hyperparameter as an integer from `least` on.

    Unlike `whole`, it takes 25.0 for 25, because a configuration file may write it so.

    Raises:
        UserError: The value is not a whole number, or below `least`.
    """
    found = scalar(value)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    return whole(name, found, least=least)


def choice(name: str, value: object, valid: Collection[str]) -> None:
    """Check that a hyperparameter is one of the valid words.

    Raises:
        UserError: It is not; the error suggests the nearest valid word.
    """
    if value not in valid:
        raise UserError(
            f"{name} must be one of {', '.join(valid)}, found {value!r}{nearest(value, valid)}"
        )


def names(strategy: str, kind: type[Any], given: Iterable[str]) -> None:
    """Check that a strategy has hyperparameters of the given names.

    Args:
        strategy: Name of the strategy, for the error.
        kind: Dataclass of the strategy; its fields are the hyperparameters.
        given: Names of the hyperparameters that the user set.

    Raises:
        UserError: There is no such hyperparameter; the error suggests the nearest one.
    """
    valid = [field.name for field in fields(kind)]
    for name in given:
        if name not in valid:
            raise UserError(
                f"{strategy} has no hyperparameter {name!r}{nearest(name, valid)}; "
                f"it has: {', '.join(valid) or 'none'}"
            )


def _real(value: object) -> float:
    """Return a number as a float, NaN for anything else."""
    found = scalar(value)
    if isinstance(found, bool) or not isinstance(found, Real):
        return math.nan
    try:
        return float(found)
    except OverflowError:  # an int that no float can hold
        return math.inf
