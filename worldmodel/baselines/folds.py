"""Folds by trunk, never by branch: the branches of a trunk share its future."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trainenv.types import UserError
from trainenv.worldmodel.examples import Examples, Flags

FOLDS = 5


def folds(examples: Examples, count: int = FOLDS, *, seed: int = 0) -> Iterator[Flags]:
    """Masks [n] of the branches to hold out, one a fold; each trunk is in one.

    As many folds as trunks, where those are fewer.

    Raises:
        UserError: there are fewer than 2 trunks with candidates.
    """
    trunks = np.unique(examples.trunk[examples.candidate])
    if len(trunks) < 2:
        raise UserError(
            f"a baseline learns from candidates of at least 2 trunks, found {len(trunks)}; generate more trunks"
        )
    fold = np.full(len(examples.trunks), -1)
    fold[np.random.default_rng(seed).permutation(trunks)] = np.arange(len(trunks)) % min(
        count, len(trunks)
    )
    for number in range(min(count, len(trunks))):
        yield fold[examples.trunk] == number
