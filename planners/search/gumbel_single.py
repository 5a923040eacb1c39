"""The choices of Gumbel MuZero in a single tree, on Python numbers; `gumbel` has the formulas."""

from __future__ import annotations

from math import exp, inf

from trainenv.planners.search.node_arrays import LEAST_RANGE
from trainenv.planners.search.single_tree import SingleTree


class GumbelPicker:
    """Picks actions by the rule `Gumbel`; see `Picker`. All untried actions share one q̂.

    Args:
        tree: Tree to choose in.
        base: Score g + logits of each action of the root; −inf for illegal actions.
        turns: Visits in this search that an action must have, for each simulation.
        offset: Offset of the visits in σ, c_visit.
        scale: Factor on q̂ in σ, c_scale.
    """

    def __init__(
        self, tree: SingleTree, base: list[float], turns: list[int], *, offset: float, scale: float
    ) -> None:
        self.tree = tree
        self.base = base
        self.offset = offset
        self.scale = scale
        self._turns = iter(turns)
        self._legal = [action for action, score in enumerate(base) if score > -inf]
        self._before = list(tree.visits[0])

    def at_root(self) -> int:
        """Return the action with the most g + logits + σ(q̂) among those whose turn it is."""
        turn = next(self._turns)
        visits = self.tree.visits[0]
        q = self.tree.q[0]
        before = self._before
        mixed, highest, scale, _ = self._scaling(0, len(self._legal))
        best = -inf
        chosen = self._legal[0]
        for action in self._legal:
            if visits[action] == before[action] + turn:
                completed = mixed
                if visits[action]:
                    completed = q[action]
                score = self.base[action] + (completed - highest) * scale
                if score > best:
                    best = score
                    chosen = action
        return chosen

    def below(self, node: int, /) -> int:
        """Return the action with the most softmax(logits + σ(q̂)) − N/(1 + ΣN)."""
        tree = self.tree
        tried = tree.tried[node]
        untried = tree.untried(node)
        if not tried:
            return untried[-1]
        priors = tree.priors(node)
        visits = tree.visits[node]
        q = tree.q[node]
        mixed, highest, scale, mass = self._scaling(node, len(visits))
        weights = [priors[action] * exp((q[action] - highest) * scale) for action in tried]
        total = sum(weights)
        visited = 1 + sum(visits)
        best = -inf
        chosen = 0
        if untried:
            factor = exp((mixed - highest) * scale)
            total += max(0.0, 1.0 - mass) * factor
            chosen = untried[-1]
            best = priors[chosen] * factor / total
        for action, weight in zip(tried, weights):
            score = weight / total - visits[action] / visited
            if score > best or (score == best and action < chosen):
                best = score
                chosen = action
        return chosen

    def _scaling(self, node: int, actions: int) -> tuple[float, float, float, float]:
        """Compute the numbers that turn q̂ into σ(q̂).

        Args:
            node: Number of the node.
            actions: Number of its legal actions.

        Returns:
            v_mix, max q̂, the factor on q̂ − max q̂, and Σ_tried π.
        """
        tree = self.tree
        tried = tree.tried[node]
        value = tree.values[node]
        if not tried:
            return value, value, 0.0, 0.0
        priors = tree.priors(node)
        visits = tree.visits[node]
        q = tree.q[node]
        mass = weighted = 0.0
        lowest = inf
        highest = -inf
        total = 0
        most = 0
        for action in tried:
            prior = priors[action]
            mean = q[action]
            count = visits[action]
            mass += prior
            weighted += prior * mean
            total += count
            lowest = min(lowest, mean)
            highest = max(highest, mean)
            most = max(most, count)
        mixed = (value + total * (weighted / mass)) / (1 + total)
        if len(tried) < actions:
            lowest = min(lowest, mixed)
            highest = max(highest, mixed)
        factor = (self.offset + most) * self.scale / max(highest - lowest, LEAST_RANGE)
        return mixed, highest, factor, mass
