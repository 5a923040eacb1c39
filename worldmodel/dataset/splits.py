"""Splits by trunk, never by window, because the branches of a run share their future.

All functions take tables of a `Dataset` and return names of trunks or masks of branches, so any
model can use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainenv.tools.spelling import nearest
from trainenv.types import UserError
from trainenv.worldmodel.dataset.rng_streams import stream

if TYPE_CHECKING:
    import pandas as pd

Flags = NDArray[np.bool_]
FAMILIES = (
    "lr_scale",
    "weight_decay_scale",
    "clip",
    "momentum_reset",
    "data_reorder",
    "skip_batch",
)
_UNTOUCHED = {"lr_scale": 1.0, "weight_decay_scale": 1.0, "clip": "keep"}


def by_trunk(
    trunks: pd.DataFrame, shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, tuple[str, ...]]:
    """Put each trunk into one part at random; each part has about its share of every setting.

    Args:
        trunks: Trunks of a data set.
        shares: Share of each part, by its name, relative to their sum.
        seed: Random seed of the split.

    Returns:
        Names of the trunks of each part.

    Raises:
        UserError: There is no part, or a share is not above 0.
    """
    if not shares or not all(share > 0 for share in shares.values()):
        raise UserError(
            f"shares must be numbers above 0, one for each part, found {dict(shares)}; "
            "name at least one part"
        )
    keys = [stream(seed, "split", int(str(name)[1:])).random() for name in trunks["trunk"]]
    order = np.lexsort((np.array(keys), trunks["setting"].to_numpy(dtype=str)))
    parts: dict[str, list[str]] = {part: [] for part in shares}
    whole = sum(shares.values())
    for count, row in enumerate(order, start=1):
        # Choose the part that is furthest below its share, so that the trunks of each setting are
        # spread over all parts.
        behind = max(parts, key=lambda part: shares[part] / whole * count - len(parts[part]))
        parts[behind].append(str(trunks["trunk"].iloc[row]))
    return {part: tuple(sorted(names)) for part, names in parts.items()}


def leave_out(
    trunks: pd.DataFrame, column: str
) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Yield (level, trunks without it, trunks with it) for each level of a property.

    Args:
        trunks: Trunks of a data set.
        column: Property: `width`, `corpus`, `stressor`, `faults`, `clip`, `setting`, … A trunk may
            have several `faults`. To have no fault or no stressor is not a level.

    Raises:
        UserError: There is no such column.
    """
    if column not in trunks:
        raise UserError(
            f"column must be one of {', '.join(trunks.columns)}, found {column!r}"
            f"{nearest(column, trunks.columns)}"
        )
    levels = [_levels(value) for value in trunks[column]]
    names = [str(name) for name in trunks["trunk"]]
    for level in sorted(set().union(*levels) - {""}):
        have = tuple(name for name, held in zip(names, levels) if level in held)
        yield level, tuple(name for name in names if name not in have), have


def _levels(value: Any) -> set[str]:
    """Return the levels in a cell, which holds one or a list."""
    if isinstance(value, np.ndarray | list):
        return {str(level) for level in value}
    return {str(value)}


def uses(branches: pd.DataFrame, family: str) -> Flags:
    """Return flags, [n], of the branches of which any decision changed a part of the run.

    Args:
        branches: Branches of a data set, n of them.
        family: Part of an action, one of `FAMILIES`.

    Raises:
        UserError: There is no such part.
    """
    if family not in FAMILIES:
        raise UserError(
            f"a family of actions must be one of {', '.join(FAMILIES)}, found {family!r}"
            f"{nearest(family, FAMILIES)}"
        )
    untouched = _UNTOUCHED.get(family, False)
    return np.array(
        [any(value != untouched for value in row) for row in branches[family]], dtype=np.bool_
    )


def leave_action_out(
    branches: pd.DataFrame, family: str, *, train: tuple[str, ...], test: tuple[str, ...]
) -> tuple[Flags, Flags]:
    """Return flags, [n], of the branches to learn from, and of those to test on.

    The first are of the trunks `train` and do not use the family; the second are of the trunks
    `test` and use it.

    Args:
        branches: Branches of a data set, n of them.
        family: Part of an action, one of `FAMILIES`.
        train: Names of the trunks to learn from.
        test: Names of the trunks to test on.

    Raises:
        UserError: There is no such family, or a trunk is in both parts.
    """
    if both := sorted(set(train) & set(test)):
        raise UserError(
            f"a trunk must be in one part only, found {both[0]} in both; take parts that by_trunk "
            "has made"
        )
    used = uses(branches, family)
    trunk = branches["trunk"]
    return trunk.isin(train).to_numpy() & ~used, trunk.isin(test).to_numpy() & used
