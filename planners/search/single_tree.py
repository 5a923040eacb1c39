"""The loop of a search from a single root, on Python numbers.

A call of NumPy takes about a microsecond however few numbers it looks at, and a simulation needs
some eighty of them. For one root plain Python is several times faster, because it can leave out
what it need not look at: actions that were never tried all have the same q̂, so that only the
likeliest of them can be chosen. The trees are those that `Growth` grows.
"""

from __future__ import annotations

import numpy as np

from trainenv.planners.search.batched_tree import check_shapes
from trainenv.planners.search.node_arrays import Nodes, softmax
from trainenv.planners.search.rules import Picker, Recurrent


class LoneTree:
    """One tree as lists with an entry a node. Child 0 stands for none: nobody's child is the root.

    Attributes:
        values: the model's own.
        rewards: of the action that led here.
        depths: decisions from the root.
        children: by action.
        visits: by action.
        q: mean return by action, 0 without visits.
        tried: actions with visits, in the order of the first.
        lowest, highest: mean returns that were seen anywhere in the tree.
    """

    def __init__(self, nodes: Nodes) -> None:
        rows = slice(1, 1 + nodes.used)
        self.nodes = nodes
        self.values: list[float] = nodes.values[rows].tolist()
        self.rewards: list[float] = nodes.rewards[rows].tolist()
        self.depths: list[int] = nodes.depths[rows].tolist()
        self.children: list[list[int]] = np.maximum(nodes.children[rows] - 1, 0).tolist()
        self.visits: list[list[int]] = nodes.visits[rows].astype(np.intp).tolist()
        self.q: list[list[float]] = nodes.q[rows].tolist()
        self.tried = [
            [action for action, count in enumerate(counts) if count] for counts in self.visits
        ]
        self._priors: list[list[float] | None] = list(nodes.priors[rows].tolist())
        self._untried: list[list[int] | None] = [None] * nodes.used
        seen = [q[action] for q, tried in zip(self.q, self.tried) for action in tried]
        self.lowest = min(seen, default=np.inf)
        self.highest = max(seen, default=-np.inf)

    def priors(self, node: int) -> list[float]:
        """Of each action, worked out when first asked for: most nodes are never passed."""
        found = self._priors[node]
        if found is None:
            found = self._priors[node] = softmax(self.nodes.logits[1 + node]).tolist()
        return found

    def untried(self, node: int) -> list[int]:
        """Actions without visits, the likeliest last; of equal ones the first action comes later."""
        found = self._untried[node]
        if found is None:
            priors = self.priors(node)
            visits = self.visits[node]
            left = [action for action in range(len(visits) - 1, -1, -1) if not visits[action]]
            found = self._untried[node] = sorted(left, key=priors.__getitem__)
        return found

    def add(self, parent: int, action: int, reward: float, value: float) -> int:
        """A new node below an action that was not tried; its number."""
        node = len(self.values)
        actions = len(self.visits[0])
        self.values.append(value)
        self.rewards.append(reward)
        self.depths.append(self.depths[parent] + 1)
        self.children.append([0] * actions)
        self.visits.append([0] * actions)
        self.q.append([0.0] * actions)
        self.tried.append([])
        self._priors.append(None)
        self._untried.append(None)
        self.children[parent][action] = node
        self.tried[parent].append(action)
        waiting = self._untried[parent]
        if waiting is not None:
            waiting.remove(action)
        return node

    def see(self, node: int, action: int, found: float) -> None:
        """Take a return into the mean of an action."""
        visits = self.visits[node]
        q = self.q[node]
        visits[action] += 1
        mean = q[action] = q[action] + (found - q[action]) / visits[action]
        self.lowest = min(self.lowest, mean)
        self.highest = max(self.highest, mean)


class LoneGrowth:
    """Grows the tree by at most one node a simulation; see `Growth`."""

    def __init__(
        self, nodes: Nodes, model: Recurrent, *, depth: int | None, discount: float
    ) -> None:
        self.tree = LoneTree(nodes)
        self.nodes = nodes
        self.model = model
        self.discount = discount
        self.depth = nodes.capacity if depth is None else depth
        self.evaluations = 0

    def simulate(self, picker: Picker) -> None:
        """One simulation."""
        tree = self.tree
        node = 0
        action = picker.at_root()
        path = [(0, action)]
        while end := tree.children[node][action]:
            if tree.depths[end] == self.depth:
                break
            node = end
            action = picker.below(node)
            path.append((node, action))
        if not end:
            end = self._ask(node, action)
        found = tree.rewards[end] + self.discount * tree.values[end]
        for node, action in reversed(path):
            tree.see(node, action, found)
            found = tree.rewards[node] + self.discount * found

    def finish(self) -> None:
        """Write the lists into the arrays."""
        nodes = self.nodes
        tree = self.tree
        count = len(self.tree.values)
        rows = slice(1, 1 + count)
        children = np.array(tree.children)
        nodes.values[rows], nodes.rewards[rows], nodes.depths[rows] = (
            tree.values,
            tree.rewards,
            tree.depths,
        )
        nodes.children[rows] = np.where(children > 0, children + 1, 0)
        nodes.visits[rows], nodes.q[rows] = tree.visits, tree.q
        parents, actions = children.nonzero()
        below = 1 + children[parents, actions]
        nodes.parents[below], nodes.actions[below] = 1 + parents, actions

    def _ask(self, parent: int, action: int) -> int:
        """Ask the model what comes of an action, and add the node."""
        nodes = self.nodes
        rewards, values, logits, latent = self.model(
            nodes.latent[1 + parent : 2 + parent], np.array([action])
        )
        check_shapes(nodes, rewards, values, logits, latent)
        node = self.tree.add(parent, action, float(rewards[0]), float(values[0]))
        nodes.logits[1 + node], nodes.latent[1 + node] = logits[0], latent[0]
        self.evaluations += 1
        return node
