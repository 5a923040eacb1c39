"""Sequential halving (Karnin, Koren & Somekh 2013) of a root's visits over its considered actions.

    round       the k actions that are left get max(1, ⌊n / (⌈log₂ m⌉·k)⌋) visits each
    next round  the better half of them, until two are left

with n simulations and m actions at the start: each of the ⌈log₂ m⌉ rounds has the same share of n.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, log2

import numpy as np

from trainenv.planners.search.contract import Ints


@lru_cache(maxsize=256)
def considered_visits(considered: int, simulations: int) -> tuple[int, ...]:
    """Return, for each simulation, the visits of the actions to choose from, [simulations].

    An action may be chosen if it has exactly that many visits so far. Actions with fewer have
    dropped out, so choosing the best of the others does the halving.

    Args:
        considered: Number of actions, m.
        simulations: Number of simulations, n.
    """
    if considered <= 1:
        return tuple(range(simulations))
    rounds = ceil(log2(considered))
    left = considered
    done = 0
    sequence = list[int]()
    while len(sequence) < simulations:
        extra = max(1, simulations // (rounds * left))
        sequence += [done + visit for visit in range(extra) for _ in range(left)]
        done = done + extra
        left = max(2, left // 2)
    return tuple(sequence[:simulations])


def schedule(considered: Ints, simulations: int) -> Ints:
    """Return `considered_visits` for many roots: considered [B] → [simulations, B]."""
    counts, place = np.unique(considered, return_inverse=True)
    table = np.array(
        [considered_visits(count, simulations) for count in counts.tolist()], dtype=np.intp
    )
    return table.T[:, place]
