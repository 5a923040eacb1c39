"""pUCT's choices in a single tree, on Python numbers: the formulas of `puct`, all untried actions taken at once."""

from __future__ import annotations

from math import log, sqrt

from trainenv.planners.search.single_tree import LoneTree

LEAST_RANGE = (
    1e-8  # of returns: below it they count as equal, since their differences may be rounding
)


class PUCTPicker:
    """Chooses; see `contract.Picker`.

    Args:
        tree: what to choose in, with the noise in the root's priors.
        illegal: which of the root's actions are.
        c_init: weight of the prior.
        c_base: visits at which that weight has grown by ln 2.
        by_node: Q̂ of untried actions is that of the node, not 0.
    """

    def __init__(
        self, tree: LoneTree, illegal: list[bool], *, c_init: float, c_base: float, by_node: bool
    ) -> None:
        self.tree = tree
        self.c_init = c_init
        self.c_base = c_base
        self.by_node = by_node
        waiting = tree.untried(0)
        waiting[:] = [action for action in waiting if not illegal[action]]

    def at_root(self) -> int:
        """As below."""
        return self.below(0)

    def below(self, node: int, /) -> int:
        """The best by Q̂ + P·√N/(1 + n)·(c_init + ln((N + c_base + 1)/c_base))."""
        tree = self.tree
        untried = tree.untried(node)
        priors = tree.priors(node)
        visits = tree.visits[node]
        q = tree.q[node]
        count = 1 + sum(visits)
        weight = sqrt(count) * (self.c_init + log((count + self.c_base + 1) / self.c_base))
        lowest = tree.lowest
        width = tree.highest - tree.lowest
        ranged = width > LEAST_RANGE
        best = -1.0
        chosen = 0
        if untried:
            chosen = untried[-1]
            best = priors[chosen] * weight
            if self.by_node and ranged:
                mean = (
                    tree.values[node]
                    + sum(visits[action] * q[action] for action in tree.tried[node])
                ) / count
                best += min(max((mean - lowest) / width, 0.0), 1.0)
        for action in tree.tried[node]:
            score = priors[action] * weight / (1 + visits[action])
            if ranged:
                score += (q[action] - lowest) / width
            if score > best or (score == best and action < chosen):
                best = score
                chosen = action
        return chosen
