"""The options at each snapshot: doing nothing, and every distinct candidate.

Doing nothing has Δ = 0, which every model knows. It represents the controls, and the candidates
that did nothing at any decision. Of candidates with the same actions the first is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainenv.worldmodel.evaluation.statistics import Floats, Ints
from trainenv.worldmodel.examples import Examples


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """A snapshot with m options: doing nothing and m − 1 distinct candidates, at least one.

    Attributes:
        snapshot: Row of the snapshot in `Examples.states`.
        trunk: Index of its trunk in `Examples.trunks`.
        rows: [m − 1] rows of the candidates in the examples.
    """

    snapshot: int
    trunk: int
    rows: Ints

    def __len__(self) -> int:
        return 1 + len(self.rows)

    def values(self, column: Floats) -> Floats:
        """Return the Δ of each option, [m], from a column [n]: first 0 for doing nothing."""
        return np.concatenate([[0.0], column[self.rows]])


def choices(examples: Examples) -> list[Choice]:
    """Return the choice at every snapshot at which an intervention was tried, in order."""
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
