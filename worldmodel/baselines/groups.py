"""Groups of similar actions, and shrunken means over them.

The group of a branch combines its four decisions: the range of the factor on the learning rate (one
of seven), the direction of the weight decay, the clip policies that were set, and whether there was
a momentum reset, a reorder or a skip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainenv.types import CLIP_NAMES
from trainenv.worldmodel.examples import Examples, Floats, Ints
from trainenv.worldmodel.features import ACTION

_EDGES = np.array([-1.0, -0.3, -0.02, 0.02, 0.3, 1.0])  # edges of the ranges of ln of the factor
RANGES = len(_EDGES) + 1
_FLAGS = (*(f"set_{name}" for name in CLIP_NAMES), "reset", "reorder", "skip")
GROUPS = RANGES * 3 * 2 ** len(_FLAGS)


def ranges(examples: Examples) -> Ints:
    """Return the range of the factor on the learning rate, [n], 0 to 6; 3 means unchanged."""
    total = examples.actions[:, :, ACTION.index("ln_lr")].sum(axis=1)
    place: Ints = np.digitize(total, _EDGES).astype(np.int64)
    return place


def groups(examples: Examples) -> Ints:
    """Return the group of each branch, [n], 0 to `GROUPS` − 1."""
    decay = examples.actions[:, :, ACTION.index("ln_weight_decay")].sum(axis=1)
    code: Ints = ranges(examples) * 3 + 1 + np.sign(decay.round(9)).astype(np.int64)
    for name in _FLAGS:
        code = 2 * code + examples.actions[:, :, ACTION.index(name)].any(axis=1)
    return code


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupMeans:
    """Means by group, shrunk to the mean of the group's range, which is shrunk to the mean of all.

    Attributes:
        means: [GROUPS, 3] mean values of each group.
    """

    means: Floats

    @classmethod
    def of(cls, examples: Examples, values: Floats, *, weight: float) -> GroupMeans:
        """Compute the means.

        Args:
            examples: Branches whose actions define the groups.
            values: [n, 3] values to average; NaN is left out.
            weight: Number of branches that the mean which is shrunk to counts for.
        """
        whole = np.zeros((GROUPS, values.shape[1]))
        wide = ranges(examples)
        fine = groups(examples)
        for place, column in enumerate(values.T):
            known = ~np.isnan(column)
            overall = 0.0
            if known.any():
                overall = float(column[known].mean())
            middle = _shrunk(column[known], wide[known], np.full(RANGES, overall), weight)
            target = np.repeat(middle, GROUPS // RANGES)
            whole[:, place] = _shrunk(column[known], fine[known], target, weight)
        return cls(means=whole)

    def __call__(self, examples: Examples) -> Floats:
        """Return the means of each branch's group, [n, 3]."""
        return self.means[groups(examples)]


def _shrunk(values: Floats, key: Ints, target: Floats, weight: float) -> Floats:
    """Return means of values [n] by key [n], shrunk to `target` [keys]."""
    sums = np.bincount(key, values, len(target))
    counts = np.bincount(key, minlength=len(target))
    shrunk: Floats = (sums + weight * target) / (counts + weight)
    return shrunk
