"""Splits by trunk, never by window: the branches of a run share their future.

Every function takes tables of a `Dataset` and returns names of trunks or masks of branches, so that
any model can use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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
    """Each trunk in one part, at random; of every setting about the same share.

    Args:
        trunks: of a data set.
        shares: of each part, by its name; they are taken relative to their sum.
        seed: of the draw.

    Raises:
        UserError: no part, or a share that is not above 0.
    """
    if not shares or not all(share > 0 for share in shares.values()):
        raise UserError(f"shares must be above 0, one a part, found {dict(shares)}")
    keys = [stream(seed, "split", int(str(name)[1:])).random() for name in trunks["trunk"]]
    order = np.lexsort((np.array(keys), trunks["setting"].to_numpy(dtype=str)))
    parts: dict[str, list[str]] = {part: [] for part in shares}
    whole = sum(shares.values())
    for count, row in enumerate(order, start=1):
        # The part that is furthest behind its share: every run of trunks of one setting is spread
        # over all parts.
        behind = max(parts, key=lambda part: shares[part] / whole * count - len(parts[part]))
        parts[behind].append(str(trunks["trunk"].iloc[row]))
    return {part: tuple(sorted(names)) for part, names in parts.items()}


def leave_out(
    trunks: pd.DataFrame, column: str
) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Each level of a property in turn: the level, the trunks without it and those with it.

    Args:
        trunks: of a data set.
        column: `width`, `corpus`, `stressor`, `faults`, `clip`, `setting`, … Of `faults`, a trunk
            has several or none; none at all, and no stressor, is no level.

    Raises:
        UserError: there is no such column.
    """
    if column not in trunks:
        raise UserError(f"column must be one of {', '.join(trunks.columns)}, found {column!r}")
    levels = [
        {str(level) for level in (value if isinstance(value, np.ndarray | list) else [value])}
        for value in trunks[column]
    ]
    names = [str(name) for name in trunks["trunk"]]
    for level in sorted(set().union(*levels) - {""}):
        have = tuple(name for name, held in zip(names, levels) if level in held)
        yield level, tuple(name for name in names if name not in have), have


def uses(branches: pd.DataFrame, family: str) -> Flags:
    """Which branches changed a part of the run, by any of their decisions: [n].

    Raises:
        UserError: there is no such part.
    """
    if family not in FAMILIES:
        raise UserError(
            f"a family of actions must be one of {', '.join(FAMILIES)}, found {family!r}"
        )
    untouched = _UNTOUCHED.get(family, False)
    return np.array(
        [any(value != untouched for value in row) for row in branches[family]], dtype=np.bool_
    )


def leave_action_out(
    branches: pd.DataFrame, family: str, *, train: tuple[str, ...], test: tuple[str, ...]
) -> tuple[Flags, Flags]:
    """Branches to learn from, of the trunks `train` and without an action family; and to be tested on, of `test` and with it.

    Raises:
        UserError: there is no such family, or a trunk is in both parts.
    """
    if both := sorted(set(train) & set(test)):
        raise UserError(
            f"a trunk must be in one part only, found {both[0]} in both; take parts that by_trunk has made"
        )
    used = uses(branches, family)
    trunk = branches["trunk"]
    return trunk.isin(train).to_numpy() & ~used, trunk.isin(test).to_numpy() & used
