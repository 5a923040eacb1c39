"""Folds by trunk and never by branch, because the branches of a trunk share its future."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trainenv.types import UserError
from trainenv.worldmodel.examples import Examples, Flags

FOLDS = 5


def folds(examples: Examples, count: int = FOLDS, *, seed: int = 0) -> Iterator[Flags]:
    """Yield for each fold a mask [n] of the branches to hold out; each trunk is in one fold.

    With fewer trunks than `count`, each trunk is its own fold.

    Raises:
        UserError: there are fewer than 2 trunks with candidates.
    """
    trunks = np.unique(examples.trunk[examples.candidate])
    if len(trunks) < 2:
        raise UserError(
            f"a baseline learns from candidates of at least 2 trunks, found {len(trunks)}; "
            "generate more trunks"
        )
    count = min(count, len(trunks))
    fold = np.full(len(examples.trunks), -1)
    shuffled = np.random.default_rng(seed).permutation(trunks)
    fold[shuffled] = np.arange(len(trunks)) % count
    for number in range(count):
        yield fold[examples.trunk] == number
