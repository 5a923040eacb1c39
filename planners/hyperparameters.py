"""What planners ask of their hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Real

from trainenv.tools.spelling import nearest
from trainenv.types import UserError


def whole(name: str, value: object, *, least: int) -> None:
    """Refuse what is no whole number from `least` on.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} must be a whole number, at least {least}, found {value!r}")


def number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
) -> None:
    """Refuse what is no finite number with above < value, least ≤ value ≤ most.

    Raises:
        UserError: it is none.
    """
    sound = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(float(value))
    if not sound or not (above < float(value) and least <= float(value) <= most):  # type: ignore[arg-type]
        bounds = [f"above {above:g}"] * (above > -math.inf) + [f"at least {least:g}"] * (
            least > -math.inf
        )
        bounds += [f"at most {most:g}"] * (most < math.inf)
        raise UserError(f"{name} must be a finite number, {' and '.join(bounds)}, found {value!r}")


def choice(name: str, value: object, valid: Collection[str]) -> None:
    """Refuse what is none of the valid words.

    Raises:
        UserError: it is none.
    """
    if value not in valid:
        raise UserError(
            f"{name} must be one of {', '.join(valid)}, found {value!r}{nearest(value, valid)}"
        )
