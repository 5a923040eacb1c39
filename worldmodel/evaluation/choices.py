"""What could be done at each snapshot: doing nothing, and each different thing that its candidates tried.

A control is no candidate. Doing nothing stands for it, with Δ = 0 that every model knows; and so it
does for candidates that did nothing at any decision. Of candidates with the same actions the first
is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainenv.worldmodel.evaluation.statistics import Floats, Ints
from trainenv.worldmodel.examples import Examples


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """A snapshot with m − 1 different candidates, at least one.

    Attributes:
        snapshot: its row in `Examples.states`.
        trunk: its place in `Examples.trunks`.
        rows: [m − 1] of the candidates in the examples.
    """

    snapshot: int
    trunk: int
    rows: Ints

    def __len__(self) -> int:
        return 1 + len(self.rows)

    def values(self, column: Floats) -> Floats:
        """[m] a column [n] of Δ's at this snapshot: 0 for doing nothing, which is first, then the candidates."""
        return np.concatenate([[0.0], column[self.rows]])


def choices(examples: Examples) -> list[Choice]:
    """Every snapshot at which something different from doing nothing was tried, in order."""
    tried = examples.candidate & examples.actions.any(axis=(1, 2))
    rows = np.flatnonzero(tried)
    order = rows[np.argsort(examples.snapshot[rows], kind="stable")]
    found = []
    for group in np.split(order, np.flatnonzero(np.diff(examples.snapshot[order])) + 1):
        if len(group):
            _, first = np.unique(examples.actions[group].round(9), axis=0, return_index=True)
            kept = group[np.sort(first)]
            snapshot = int(examples.snapshot[kept[0]])
            found.append(Choice(snapshot=snapshot, trunk=int(examples.trunk[kept[0]]), rows=kept))
    return found
