"""Gumbel MuZero's choices in a single tree, on Python numbers: the formulas of `gumbel`, all untried actions at once."""

from __future__ import annotations

from math import exp, inf

from trainenv.planners.search.single_tree import LoneTree

LEAST_RANGE = 1e-8  # of q̂: below it all actions count as equally good


class GumbelPicker:
    """Chooses; see `contract.Picker`.

    Args:
        tree: what to choose in.
        base: g + logits of the root's actions, −inf where illegal.
        turns: for each simulation, the visits in this search that an action must have for being
            chosen.
        offset: c_visit.
        scale: c_scale.
    """

    def __init__(
        self, tree: LoneTree, base: list[float], turns: list[int], *, offset: float, scale: float
    ) -> None:
        self.tree = tree
        self.base = base
        self.offset = offset
        self.scale = scale
        self._turns = iter(turns)
        self._legal = [action for action, score in enumerate(base) if score > -inf]
        self._before = list(tree.visits[0])

    def at_root(self) -> int:
        """The best of those whose turn it is, by g + logits + σ(q̂)."""
        turn = next(self._turns)
        visits = self.tree.visits[0]
        q = self.tree.q[0]
        before = self._before
        mixed, highest, scale, _ = self._range(0, len(self._legal))
        best = -inf
        chosen = self._legal[0]
        for action in self._legal:
            if visits[action] == before[action] + turn:
                score = (
                    self.base[action] + ((q[action] if visits[action] else mixed) - highest) * scale
                )
                if score > best:
                    best = score
                    chosen = action
        return chosen

    def below(self, node: int, /) -> int:
        """The best by softmax(logits + σ(q̂)) − N/(1 + ΣN)."""
        tree = self.tree
        tried = tree.tried[node]
        untried = tree.untried(node)
        if not tried:
            return untried[-1]
        priors = tree.priors(node)
        visits = tree.visits[node]
        q = tree.q[node]
        mixed, highest, scale, mass = self._range(node, len(visits))
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

    def _range(self, node: int, actions: int) -> tuple[float, float, float, float]:
        """v_mix, max q̂, the factor that makes σ of q̂, Σ_tried π; of so many actions that count."""
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
        return (
            mixed,
            highest,
            (self.offset + most) * self.scale / max(highest - lowest, LEAST_RANGE),
            mass,
        )
