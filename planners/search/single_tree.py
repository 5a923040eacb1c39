"""Simulations of a single tree, on Python numbers.

A call of NumPy takes about a microsecond even for a few numbers, and a simulation needs about
eighty of them. For one root plain Python is several times faster, because it skips work: all
untried actions have the same q̂, so only the likeliest of them can be chosen. The trees are equal
to those of `BatchedSearch`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from trainenv.planners.search.contract import Recurrent
from trainenv.planners.search.node_arrays import Nodes, check_shapes, softmax


class Picker(Protocol):
    """Chooses the same actions as its chooser, from the lists of a single tree, which it reads."""

    def at_root(self) -> int:
        """Return the action to take at the root; called once a simulation."""
        ...

    def below(self, node: int, /) -> int:
        """Return the action to take at another node."""
        ...


class SingleTree:
    """One tree as lists with an entry a node. Child 0 means none, since no child is the root.

    Attributes:
        values: Value that the model gave to each node.
        rewards: Reward of the action that led to each node.
        depths: Decisions from the root to each node.
        children: Child of each node, by action.
        visits: Simulations that took each action of a node.
        q: Mean return of each action of a node; 0 without visits.
        tried: Actions of a node that have visits, in the order of the first visit.
        lowest: Lowest mean return seen anywhere in the tree.
        highest: Highest mean return seen anywhere in the tree.
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
        """Return the prior of each action, computed on first use: most nodes never need it."""
        found = self._priors[node]
        if found is None:
            found = self._priors[node] = softmax(self.nodes.logits[1 + node]).tolist()
        return found

    def untried(self, node: int) -> list[int]:
        """Return the actions without visits, the likeliest last; ties go to the lowest action."""
        found = self._untried[node]
        if found is None:
            priors = self.priors(node)
            visits = self.visits[node]
            left = [action for action in range(len(visits) - 1, -1, -1) if not visits[action]]
            found = self._untried[node] = sorted(left, key=priors.__getitem__)
        return found

    def add(self, parent: int, action: int, reward: float, value: float) -> int:
        """Add a node below an untried action and return its number."""
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

    def update(self, node: int, action: int, found: float) -> None:
        """Update the visits and the mean return of an action with one more return."""
        visits = self.visits[node]
        q = self.q[node]
        visits[action] += 1
        mean = q[action] = q[action] + (found - q[action]) / visits[action]
        self.lowest = min(self.lowest, mean)
        self.highest = max(self.highest, mean)


class SingleSearch:
    """Grows the tree by at most one node a simulation; see `BatchedSearch`."""

    def __init__(
        self, nodes: Nodes, model: Recurrent, *, depth: int | None, discount: float
    ) -> None:
        self.tree = SingleTree(nodes)
        self.nodes = nodes
        self.model = model
        self.discount = discount
        self.depth = depth or nodes.capacity  # no path is longer than the number of nodes
        self.evaluations = 0

    def simulate(self, picker: Picker) -> None:
        """Run one simulation."""
        tree = self.tree
        node = 0
        action = picker.at_root()
        path = [(0, action)]
        while leaf := tree.children[node][action]:
            if tree.depths[leaf] == self.depth:
                break
            node = leaf
            action = picker.below(node)
            path.append((node, action))
        if not leaf:
            leaf = self._evaluate(node, action)
        found = tree.rewards[leaf] + self.discount * tree.values[leaf]
        for node, action in reversed(path):
            tree.update(node, action, found)
            found = tree.rewards[node] + self.discount * found

    def finish(self) -> None:
        """Write the lists into the arrays."""
        nodes = self.nodes
        tree = self.tree
        count = len(self.tree.values)
        rows = slice(1, 1 + count)
        children = np.array(tree.children)
        nodes.values[rows] = tree.values
        nodes.rewards[rows] = tree.rewards
        nodes.depths[rows] = tree.depths
        nodes.children[rows] = np.where(children > 0, children + 1, 0)
        nodes.visits[rows] = tree.visits
        nodes.q[rows] = tree.q
        parents, actions = children.nonzero()
        below = 1 + children[parents, actions]
        nodes.parents[below] = 1 + parents
        nodes.actions[below] = actions

    def _evaluate(self, parent: int, action: int) -> int:
        """Call the model for an untried action, add the node and return its number."""
        nodes = self.nodes
        rewards, values, logits, latent = self.model(
            nodes.latent[1 + parent : 2 + parent], np.array([action])
        )
        check_shapes(nodes, rewards, values, logits, latent)
        node = self.tree.add(parent, action, float(rewards[0]), float(values[0]))
        nodes.logits[1 + node] = logits[0]
        nodes.latent[1 + node] = latent[0]
        self.evaluations += 1
        return node
