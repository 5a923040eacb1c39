"""Arrays in which a search grows its trees: one row a node, all allocated before the search.

Row 1 + b·N + n is node n of root b. Row 0 means "no node": it has no children, no reward and no
visits. A path that has ended stays in row 0 while other paths are still under way, so no step down
the trees needs a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.search.contract import Floats, Ints, Root, Tree
from trainenv.types import UserError

# Least probability: rounding to 0 would make the mean over visited actions 0/0.
LEAST_PRIOR = 1e-30
# Range of returns below which they count as equal: their differences may be rounding errors.
LEAST_RANGE = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Arrays of M = 1 + B·N rows, written in place.

    Statistics are float64, so that rescaling them to [0, 1] does not magnify rounding errors.

    Attributes:
        batch: Number of roots, B.
        capacity: Number of nodes a root, N.
        used: Number of nodes a root at the start; the next node gets this number.
        roots: Rows of the roots, [B].
        parents: Row of the parent, [M]; 0 for roots and holes.
        actions: Action that led to the node, [M].
        depths: Decisions from the root, [M].
        rewards: Reward of the action that led to the node, [M].
        values: Value that the model gave to the node, [M].
        logits: Policy logits of the node, [M, A].
        children: Row of the child, [M, A]; 0 for none.
        ways: Row of the child that a path may continue to, [M, A]; 0 for none, and where the child
            is at the depth limit. The same array as `children` without a limit.
        facts: Visits (as floats), q and priors, [M, A, 3]; next to each other, so that one fetch
            reads all three.
        latent: Latent states, [M, …].
        edges: Chosen edge of each row, [M]: row·A + action, an index into the flat [M, A] arrays.
        follow: Row after the chosen edge, [M]; 0 where the path ends.
    """

    batch: int
    capacity: int
    used: int
    roots: Ints
    parents: Ints
    actions: Ints
    depths: Ints
    rewards: Floats
    values: Floats
    logits: Floats
    children: Ints
    ways: Ints
    facts: Floats
    latent: NDArray[Any]
    edges: Ints
    follow: Ints

    @property
    def visits(self) -> Floats:
        """A view of the simulations that took each action, [M, A]."""
        return self.facts[:, :, 0]

    @property
    def q(self) -> Floats:
        """A view of the mean return of each action, [M, A]; 0 without visits."""
        return self.facts[:, :, 1]

    @property
    def priors(self) -> Floats:
        """A view of the softmax of the logits, [M, A]."""
        return self.facts[:, :, 2]

    def columns(self, rows: Ints) -> Floats:
        """Return the facts of some rows as [3, A, R].

        Sums and maxima over actions are several times faster along such columns.
        """
        return self.facts.take(rows, 0).transpose(2, 1, 0).copy()

    def point(self, rows: Ints, edges: Ints) -> None:
        """Choose an edge for each of the rows, [R] each."""
        self.edges[rows] = edges
        self.follow[rows] = self.ways.take(edges)


def plant(root: Root, *, room: int, depth: int | None, below: Tree | None = None) -> Nodes:
    """Return arrays that hold the roots and have room for more nodes.

    Args:
        root: States to search from.
        room: Number of further nodes a root.
        depth: Depth limit, decisions; None for none.
        below: Trees to continue from; None to begin anew.
    """
    batch, actions = root.logits.shape
    kept = 1 if below is None else below.parents.shape[1]
    capacity = kept + room
    count = 1 + batch * capacity
    children = np.zeros((count, actions), dtype=np.intp)
    nodes = Nodes(
        batch=batch,
        capacity=capacity,
        used=kept,
        roots=1 + capacity * np.arange(batch),
        parents=np.zeros(count, dtype=np.intp),
        actions=np.zeros(count, dtype=np.intp),
        depths=np.zeros(count, dtype=np.intp),
        rewards=np.zeros(count),
        values=np.zeros(count),
        logits=np.zeros((count, actions)),
        children=children,
        ways=children if depth is None else np.zeros((count, actions), dtype=np.intp),
        facts=np.zeros((count, actions, 3)),
        latent=np.zeros((count, *root.latent.shape[1:]), dtype=root.latent.dtype),
        edges=np.zeros(count, dtype=np.intp),
        follow=np.zeros(count, dtype=np.intp),
    )
    if below is not None:
        _copy(below, nodes)
    nodes.values[nodes.roots] = root.value
    nodes.logits[nodes.roots] = root.logits
    nodes.latent[nodes.roots] = root.latent
    rows = (nodes.roots[:, None] + np.arange(kept)).ravel()
    nodes.priors[rows] = softmax(nodes.logits[rows].T).T
    if below is not None and depth is not None:
        deep = nodes.depths.take(nodes.children) == depth
        nodes.ways[:] = np.where(deep, 0, nodes.children)
    nodes.point(rows, rows * actions + nodes.priors[rows].argmax(axis=1))
    return nodes


def harvest(nodes: Nodes) -> Tree:
    """Return the trees with node numbers instead of rows.

    The tree shares its arrays with the nodes, which must not be used afterwards.
    """

    def by_root(flat: NDArray[Any]) -> NDArray[Any]:
        return flat[1:].reshape(nodes.batch, nodes.capacity, *flat.shape[1:])

    parents = by_root(nodes.parents)
    children = by_root(nodes.children)
    actions = np.where(parents > 0, by_root(nodes.actions), -1)
    for rows in (parents, children):
        rows -= nodes.roots.reshape(-1, *[1] * (rows.ndim - 1))
        np.maximum(rows, -1, out=rows)  # row 0 was below all roots
    return Tree(
        parents=parents,
        actions=actions,
        depths=by_root(nodes.depths),
        rewards=by_root(nodes.rewards),
        raw_values=by_root(nodes.values),
        logits=by_root(nodes.logits),
        children=children,
        visits=by_root(nodes.visits).astype(np.intp),
        q=by_root(nodes.q),
        latent=by_root(nodes.latent),
    )


def _copy(tree: Tree, nodes: Nodes) -> None:
    """Write a tree into fresh nodes, the inverse of `harvest`."""
    kept = tree.parents.shape[1]
    rows = nodes.roots[:, None] + np.arange(kept)
    first = nodes.roots[:, None]
    nodes.parents[rows] = np.where(tree.parents >= 0, tree.parents + first, 0)
    nodes.children[rows] = np.where(tree.children >= 0, tree.children + first[:, :, None], 0)
    for name, found in (
        ("actions", np.maximum(tree.actions, 0)),
        ("depths", tree.depths),
        ("rewards", tree.rewards),
        ("values", tree.raw_values),
        ("logits", tree.logits),
        ("visits", tree.visits),
        ("q", tree.q),
        ("latent", tree.latent),
    ):
        getattr(nodes, name)[rows] = found


def softmax(columns: Floats) -> Floats:
    """Return probabilities over the first axis, [A, R], each at least `LEAST_PRIOR`."""
    weights = np.exp(columns - np.maximum.reduce(columns, 0))
    weights /= np.ones(len(weights)).dot(weights)
    floored: Floats = np.maximum(weights, LEAST_PRIOR, out=weights)
    return floored


def check_shapes(
    nodes: Nodes, rewards: Floats, values: Floats, logits: Floats, latent: NDArray[Any]
) -> None:
    """Check the shapes of a model's answer.

    Raises:
        UserError: An array has the wrong shape.
    """
    found = np.shape(rewards), np.shape(values), np.shape(logits), np.shape(latent)
    batch = (nodes.batch,)
    expected = batch, batch, batch + nodes.logits.shape[1:], batch + nodes.latent.shape[1:]
    if found != expected:
        raise UserError(
            f"the model must return reward, value, logits and latent of the shapes {expected}, "
            f"found {found}; return one row for each latent state"
        )
