"""Sequential halving (Karnin, Koren & Somekh 2013): how a budget of visits is spread over the considered actions of a root.

All m actions get the same number of visits, then the better half of them, and so on until two are
left; each of the ⌈log₂ m⌉ rounds has the same share of the n simulations: max(1, ⌊n / (⌈log₂
m⌉·k)⌋) visits for each of the k actions in it.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, log2

import numpy as np

from trainenv.planners.search.rules import Ints


@lru_cache(maxsize=256)
def considered_visits(considered: int, simulations: int) -> tuple[int, ...]:
    """For each simulation, how many visits an action must have so far for being chosen now, [simulations].

    Choosing the best action among those with that many makes the halving: who has fewer has dropped
    out.
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
    """`considered_visits` for many roots: considered [B] → [simulations, B]."""
    counts, place = np.unique(considered, return_inverse=True)
    table = np.array(
        [considered_visits(count, simulations) for count in counts.tolist()], dtype=np.intp
    )
    return table.T[:, place]
