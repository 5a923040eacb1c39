"""Simulations of many trees together: down all trees, one call of the model, and back up."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.search.contract import Floats, Ints, Recurrent
from trainenv.planners.search.node_arrays import Nodes, check_shapes, softmax
from trainenv.planners.search.rules import Chooser


class BatchedSearch:
    """Grows each tree by at most one node a simulation.

    Attributes:
        evaluations: Number of states that the model has evaluated.
    """

    def __init__(
        self,
        nodes: Nodes,
        model: Recurrent,
        chooser: Chooser,
        *,
        depth: int | None,
        discount: float,
    ) -> None:
        self.nodes = nodes
        self.model = model
        self.chooser = chooser
        self.depth = depth
        self.discount = discount
        self.evaluations = 0
        self._node = nodes.used  # number of the next node of each root
        self._actions = nodes.children.shape[1]
        # Flat views.
        self._facts = nodes.facts.ravel()
        self._children = nodes.children.ravel()
        self._ways = nodes.ways.ravel()
        self._by_tree = _ByTree(nodes)
        levels = nodes.capacity + 1
        self._path = np.zeros((levels, nodes.batch), dtype=np.intp)  # [level, B] rows
        self._path[0] = nodes.roots
        # [level, B] return from the choice at that level on
        self._returns = np.zeros((levels, nodes.batch))

    def simulate(self) -> Ints:
        """Run one simulation; return the rows it passed, [R], each once, the B roots first."""
        path = self._descend()
        last: Ints = np.maximum.reduce(path, 0)  # [B]: rows rise along a path, and end with 0
        edges = self.nodes.edges.take(last)
        leaves = self._leaves(last, edges)
        returns = self.nodes.rewards.take(leaves) + self.discount * self.nodes.values.take(leaves)
        return self._back_up(path, returns)

    def _descend(self) -> Ints:
        """Follow the choices until all paths have ended; [level, B] rows, 0 after a path's end."""
        path = self._path
        follow = self.nodes.follow
        before_step = self.chooser.before_step
        level = 0
        while True:
            before_step(path[level])
            level += 1
            if not follow.take(path[level - 1], out=path[level], mode="clip").any():
                return path[:level]

    def _leaves(self, last: Ints, edges: Ints) -> Ints:
        """Return the row that each path leads to, [B]: a known one at the depth limit, else new."""
        nodes = self.nodes
        leaves: Ints = nodes.roots + self._node
        if self.depth is not None:
            known: Ints = self._children.take(edges)
            if known.all():
                return known
            np.copyto(leaves, known, where=known > 0)  # its new row stays a hole, without a parent
        self._evaluate(last, edges)
        nodes.parents[leaves] = last
        self._children[edges] = leaves
        depths = nodes.depths.take(last) + 1
        nodes.depths[leaves] = depths
        if self.depth is not None:
            self._ways[edges] = leaves * (depths < self.depth)
        return leaves

    def _evaluate(self, last: Ints, edges: Ints) -> None:
        """Call the model and write its answer into the next row of each root."""
        nodes = self.nodes
        node = self._node
        actions = edges - last * self._actions
        rewards, values, logits, latent = self.model(nodes.latent.take(last, 0), actions)
        check_shapes(nodes, rewards, values, logits, latent)
        by_tree = self._by_tree
        by_tree.actions[:, node] = actions
        by_tree.rewards[:, node] = rewards
        by_tree.values[:, node] = values
        by_tree.logits[:, node] = logits
        by_tree.latent[:, node] = latent
        priors = softmax(by_tree.logits[:, node].T.copy())  # [A, B]
        by_tree.priors[:, node] = priors.T
        # Until a first visit the likeliest action is chosen; then the rule chooses.
        by_tree.edges[:, node] = (nodes.roots + node) * self._actions + priors.argmax(0)
        self._node += 1
        self.evaluations += len(last)

    def _back_up(self, path: Ints, leaf_returns: Floats) -> Ints:
        """Update the visits and mean returns along the paths; return the rows passed, [R].

        Args:
            path: Rows of each path, [level, B]; 0 after its end.
            leaf_returns: Return from the last choice of each path on, [B].
        """
        returns = self._returns[: len(path)]
        returns[-1] = leaf_returns
        for level in range(len(path) - 1, 0, -1):
            later = returns[level]
            if self.discount != 1.0:
                later = np.where(path[level] > 0, self.discount * later, later)
            # Row 0 has no reward, so returns pass through it unchanged.
            np.add(later, self.nodes.rewards.take(path[level]), out=returns[level - 1])
        passed = path.ravel().nonzero()[0]
        rows = path.ravel().take(passed)
        slots = 3 * self.nodes.edges.take(rows)  # visits in the flat facts; q is in the next slot
        count = self._facts.take(slots) + 1.0
        mean = self._facts.take(slots + 1)
        found = returns.ravel().take(passed)
        self._facts[slots] = count
        found -= mean
        found /= count
        found += mean
        self._facts[slots + 1] = found
        return rows


class _ByTree:
    """Views of `Nodes` as [B, N, …].

    Writing node n of all trees at once is several times faster than writing rows.
    """

    def __init__(self, nodes: Nodes) -> None:
        def view(flat: NDArray[Any]) -> NDArray[Any]:
            return flat[1:].reshape(nodes.batch, nodes.capacity, *flat.shape[1:])

        self.actions = view(nodes.actions)
        self.rewards = view(nodes.rewards)
        self.values = view(nodes.values)
        self.logits = view(nodes.logits)
        self.latent = view(nodes.latent)
        self.edges = view(nodes.edges)
        self.priors = view(nodes.facts)[:, :, :, 2]
