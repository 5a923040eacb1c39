"""One simulation after another: down all trees, one call of the model, and up again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.search.node_arrays import Nodes, softmax
from trainenv.planners.search.rules import Chooser, Floats, Ints, Recurrent
from trainenv.types import UserError


class Growth:
    """Grows each tree by at most one node a simulation.

    Attributes:
        evaluations: states that the model was asked for so far.
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
        self._facts = nodes.facts.ravel()  # views, these and the next
        self._children = nodes.children.ravel()
        self._ways = nodes.ways.ravel()
        self._by_tree = _ByTree(nodes)
        levels = nodes.capacity + 1
        self._path = np.zeros((levels, nodes.batch), dtype=np.intp)  # [level, B] rows
        self._path[0] = nodes.roots
        self._returns = np.zeros(
            (levels, nodes.batch)
        )  # [level, B] from the choice at that level on

    def simulate(self) -> Ints:
        """One simulation; returns the rows passed, [R], each once, the B roots first."""
        path = self._descend()
        last: Ints = np.maximum.reduce(path, 0)  # [B] row numbers rise along a path, and end with 0
        edges = self.nodes.edges.take(last)
        ends = self._ends(last, edges)
        returns = self.nodes.rewards.take(ends) + self.discount * self.nodes.values.take(ends)
        return self._back_up(path, returns)

    def _descend(self) -> Ints:
        """Follow the choices until all paths have ended; [level, B] rows, 0 where a path has ended before."""
        path = self._path
        follow = self.nodes.follow
        before_step = self.chooser.before_step
        level = 0
        while True:
            before_step(path[level])
            level += 1
            if not follow.take(path[level - 1], out=path[level], mode="clip").any():
                return path[:level]

    def _ends(self, last: Ints, edges: Ints) -> Ints:
        """The row that each path leads to, [B]: a new one but where it ended because of its depth."""
        nodes = self.nodes
        ends: Ints = nodes.roots + self._node
        if self.depth is not None:
            known: Ints = self._children.take(edges)
            if known.all():
                return known
            np.copyto(ends, known, where=known > 0)  # what is new there is a hole, without a parent
        self._ask(last, edges)
        nodes.parents[ends] = last
        self._children[edges] = ends
        depths = nodes.depths.take(last) + 1
        nodes.depths[ends] = depths
        if self.depth is not None:
            self._ways[edges] = ends * (depths < self.depth)
        return ends

    def _ask(self, last: Ints, edges: Ints) -> None:
        """Ask the model and write what it says into the next row of each root."""
        nodes = self.nodes
        node = self._node
        actions = edges - last * self._actions
        rewards, values, logits, latent = self.model(nodes.latent.take(last, 0), actions)
        check_shapes(nodes, rewards, values, logits, latent)
        of = self._by_tree
        of.actions[:, node], of.rewards[:, node], of.values[:, node] = actions, rewards, values
        of.logits[:, node], of.latent[:, node] = logits, latent
        priors = softmax(of.logits[:, node].T.copy())
        of.priors[:, node] = priors.T
        of.edges[:, node] = (nodes.roots + node) * self._actions + priors.argmax(
            0
        )  # until it is visited; then its rule chooses
        self._node += 1
        self.evaluations += len(last)

    def _back_up(self, path: Ints, ended: Floats) -> Ints:
        """Tell the choices on the paths what came of them: the return from the last one on is `ended`, [B]."""
        returns = self._returns[: len(path)]
        returns[-1] = ended
        for level in range(len(path) - 1, 0, -1):
            later = returns[level]
            if self.discount != 1.0:
                later = np.where(path[level] > 0, self.discount * later, later)
            np.add(
                later, self.nodes.rewards.take(path[level]), out=returns[level - 1]
            )  # row 0 has no reward
        passed = path.ravel().nonzero()[0]
        rows = path.ravel().take(passed)
        slots = 3 * self.nodes.edges.take(
            rows
        )  # of the visits, in the flat facts; the mean comes next
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
    """Views of `Nodes` as [B, N, …], to write node n of all trees at once: several times faster than by rows."""

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


def check_shapes(
    nodes: Nodes, rewards: Floats, values: Floats, logits: Floats, latent: NDArray[Any]
) -> None:
    """Check what a model returned.

    Raises:
        UserError: an array has another shape than it should.
    """
    found = np.shape(rewards), np.shape(values), np.shape(logits), np.shape(latent)
    batch = (nodes.batch,)
    expected = batch, batch, batch + nodes.logits.shape[1:], batch + nodes.latent.shape[1:]
    if found != expected:
        raise UserError(
            f"the model must return reward, value, logits and latent of the shapes {expected}, found {found}"
        )
