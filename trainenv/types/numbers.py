"""Conversion of numbers from outside to Python numbers, with one error each."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from trainenv.types.errors import UserError


def as_number(value: object, name: str, *, least: float | None = None, unit: str = "") -> float:
    """Return a number from outside as a Python float.

    NumPy's numbers are taken too, and arrays and tensors of one element.

    Raises:
        UserError: The value is not a finite number, or below `least`.
    """
    if type(value) is float and least is None and math.isfinite(value):
        return value  # a schedule is asked for thousands of steps at a decision
    number = scalar(value)
    try:
        found = float(number) if isinstance(number, Real) else math.nan
    except OverflowError:  # an int that no float can hold
        found = math.inf
    if math.isfinite(found) and (least is None or found >= least):
        return found
    kind = "a finite number"
    if least is not None:
        kind = f"{least:g} {unit} or more and finite".replace("  ", " ")
    raise UserError(f"{name} must be {kind}, found {_short(value)}; give a number")


def as_whole(value: object, name: str, *, least: int | None = None) -> int:
    """Return a whole number from outside as a Python int.

    NumPy's numbers are taken too, 3.0, and arrays and tensors of one element.

    Raises:
        UserError: The value is not a whole number, or below `least`.
    """
    number: Any = scalar(value)
    whole = isinstance(number, Integral) or (
        isinstance(number, Real) and float(number).is_integer()
    )
    if not whole:
        raise UserError(f"{name} must be a whole number, found {_short(value)}; give an integer")
    found = int(number)
    if least is not None and found < least:
        raise UserError(f"{name} must be {least} or more, found {found}")
    return found


def as_bool(value: object, name: str) -> bool:
    """Return a truth value from outside as a Python bool.

    NumPy's truth values are taken too, and arrays and tensors of one element.

    Raises:
        UserError: The value is neither True nor False; "no" and 0 are refused too.
    """
    flag = scalar(value)
    if not isinstance(flag, bool):
        raise UserError(f"{name} must be True or False, found {_short(value)}; give one of the two")
    return flag


def scalar(value: object) -> object:
    """Return the only element of an array or tensor as a Python number; else the value itself."""
    if type(value) in (bool, int, float):
        return value
    if isinstance(value, Decimal):
        return float(value)
    try:
        return value.item()  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError, RuntimeError):  # it has none, or more than one
        return value


def _short(value: object) -> str:
    return f"{value!r:.80}"
