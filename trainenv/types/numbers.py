"""Numbers from outside, as Python numbers: the one conversion, with one error each."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from trainenv.types.errors import UserError

if TYPE_CHECKING:
    pass


def as_number(value: object, name: str, *, least: float | None = None, unit: str = "") -> float:
    """A number from outside as a Python float: also NumPy's, and arrays and tensors of one element.

    Raises:
        UserError: it is not a finite number, or below `least`.
    """
    number = scalar(value)
    try:
        found = float(number) if isinstance(number, Real) else math.nan
    except OverflowError:  # an int that no float can hold
        found = math.inf
    if math.isfinite(found) and (least is None or found >= least):
        return found
    kind = (
        "a finite number"
        if least is None
        else f"{least:g} {unit} or more and finite".replace("  ", " ")
    )
    raise UserError(f"{name} must be {kind}, found {_short(value)}; give a number")


def as_whole(value: object, name: str, *, least: int | None = None) -> int:
    """A whole number from outside as a Python int: also NumPy's, 3.0, and arrays and tensors of one element.

    Raises:
        UserError: it is not a whole number, or below `least`.
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
    """A truth value from outside as a Python bool: also NumPy's, and arrays and tensors of one element.

    Raises:
        UserError: it is neither True nor False; "no" and 0 are refused too.
    """
    flag = scalar(value)
    if not isinstance(flag, bool):
        raise UserError(f"{name} must be True or False, found {_short(value)}; give one of the two")
    return flag


def scalar(value: object) -> object:
    """The one element of an array or a tensor as a Python number; anything else as it is."""
    if isinstance(value, bool | int | float) and type(value) in (bool, int, float):
        return value
    try:
        return float(value) if isinstance(value, Decimal) else value.item()  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError, RuntimeError):  # it has none, or more than one
        return value


def _short(value: object) -> str:
    return f"{value!r:.80}"
