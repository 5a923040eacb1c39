"""Actions in groups, and shrunken means of them.

A group is what a branch did over its four decisions, taken together: the learning rate's factor in
one of seven ranges, the weight decay's direction, which clip policies were set, whether there was a
momentum reset, a reorder, a skip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainenv.types import CLIP_NAMES
from trainenv.worldmodel.examples import Examples, Floats, Ints
from trainenv.worldmodel.features import ACTION

_EDGES = np.array([-1.0, -0.3, -0.02, 0.02, 0.3, 1.0])  # of ln of the factor
RANGES = len(_EDGES) + 1
_FLAGS = (*(f"set_{name}" for name in CLIP_NAMES), "reset", "reorder", "skip")
GROUPS = RANGES * 3 * 2 ** len(_FLAGS)


def ranges(examples: Examples) -> Ints:
    """[n] range of the learning rate's factor, 0 to 6; 3 where it is left alone."""
    total = examples.actions[:, :, ACTION.index("ln_lr")].sum(axis=1)
    place: Ints = np.digitize(total, _EDGES).astype(np.int64)
    return place


def groups(examples: Examples) -> Ints:
    """[n] group of what a branch did, 0 to `GROUPS` − 1."""
    decay = examples.actions[:, :, ACTION.index("ln_weight_decay")].sum(axis=1)
    code: Ints = ranges(examples) * 3 + 1 + np.sign(decay.round(9)).astype(np.int64)
    for name in _FLAGS:
        code = 2 * code + examples.actions[:, :, ACTION.index(name)].any(axis=1)
    return code


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupMeans:
    """Means by group, each shrunk to that of its range of learning rates, and these to the mean of all.

    Attributes:
        means: [GROUPS, 3].
    """

    means: Floats

    @classmethod
    def of(cls, examples: Examples, values: Floats, *, weight: float) -> GroupMeans:
        """Of values [n, 3]; NaN is left out.

        Args:
            examples: whose actions say the group.
            values: to be averaged.
            weight: how many branches what a mean is shrunk to counts for.
        """
        whole = np.zeros((GROUPS, values.shape[1]))
        wide = ranges(examples)
        fine = groups(examples)
        for place, column in enumerate(values.T):
            known = ~np.isnan(column)
            overall = float(column[known].mean()) if known.any() else 0.0
            middle = _shrunk(column[known], wide[known], RANGES, np.full(RANGES, overall), weight)
            whole[:, place] = _shrunk(
                column[known], fine[known], GROUPS, np.repeat(middle, GROUPS // RANGES), weight
            )
        return cls(means=whole)

    def __call__(self, examples: Examples) -> Floats:
        """[n, 3] of each branch's group."""
        return self.means[groups(examples)]


def _shrunk(values: Floats, key: Ints, count: int, towards: Floats, weight: float) -> Floats:
    """[count] means by key, with `weight` times `towards` [count] counted in."""
    shrunk: Floats = (np.bincount(key, values, count) + weight * towards) / (
        np.bincount(key, minlength=count) + weight
    )
    return shrunk
