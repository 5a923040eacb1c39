"""The choices of pUCT in a single tree, on Python numbers; `puct` has the formula."""

from __future__ import annotations

from math import log, sqrt

from trainenv.planners.search.node_arrays import LEAST_RANGE
from trainenv.planners.search.single_tree import SingleTree


class PUCTPicker:
    """Picks actions by the rule `PUCT`; see `Picker`. All untried actions share one Q̂.

    Args:
        tree: Tree to choose in; the priors of its root contain the noise.
        illegal: Truth value a root action, True if it is illegal.
        c_init: Weight of the prior.
        c_base: Visits at which that weight has grown by ln 2.
        by_node: Q̂ of untried actions is the mean return of the node instead of 0.
    """

    def __init__(
        self, tree: SingleTree, illegal: list[bool], *, c_init: float, c_base: float, by_node: bool
    ) -> None:
        self.tree = tree
        self.c_init = c_init
        self.c_base = c_base
        self.by_node = by_node
        waiting = tree.untried(0)
        waiting[:] = [action for action in waiting if not illegal[action]]

    def at_root(self) -> int:
        """Return the action to take at the root, by the same formula as below it."""
        return self.below(0)

    def below(self, node: int, /) -> int:
        """Return the action with the greatest score by the formula of pUCT."""
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
                returns = sum(visits[action] * q[action] for action in tree.tried[node])
                mean = (tree.values[node] + returns) / count
                best += min(max((mean - lowest) / width, 0.0), 1.0)
        for action in tree.tried[node]:
            score = priors[action] * weight / (1 + visits[action])
            if ranged:
                score += (q[action] - lowest) / width
            if score > best or (score == best and action < chosen):
                best = score
                chosen = action
        return chosen
