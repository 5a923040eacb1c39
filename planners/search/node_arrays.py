"""The arrays that a search grows its trees in: one row a node, flat over roots and nodes, all of it allocated beforehand.

Row 1 + b·N + n is node n of root b. Row 0 stands for "no node": it has no children, no reward, and
nobody visits it, so that a path that has ended can go on there while others are still on their way,
and no step needs a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.search.rules import Floats, Ints, Root, Tree

LEAST_PRIOR = (
    1e-30  # a probability that is lost in rounding would make 0/0 of the mean over visited actions
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """M = 1 + B·N rows; written in place.

    Statistics are float64: what is rescaled to [0, 1] must not be rounding.

    Attributes:
        batch: B.
        capacity: N.
        used: how many nodes of each root were there from the start; the next one has this number.
        roots: [B] rows of the roots.
        parents: [M] row above, 0 for roots and holes.
        actions: [M] that led here.
        depths: [M] decisions from the root.
        rewards: [M] of the action that led here.
        values: [M] the model's own.
        logits: [M, A].
        children: [M, A] row below or 0.
        ways: [M, A] the same, 0 also where the child is as deep as a path may go; the same array
            where depth has no limit.
        facts: [M, A, 3] what rules look at, side by side so that it is fetched at once: visits (as
            floats), q, priors.
        latent: [M, …].
        edges: [M] what was chosen: row·A + action, an index into the flat [M, A] arrays.
        follow: [M] the row to go on to after that choice, 0 where the path ends.
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
        """[M, A] simulations that took each action; a view."""
        return self.facts[:, :, 0]

    @property
    def q(self) -> Floats:
        """[M, A] mean return of each action, 0 without visits; a view."""
        return self.facts[:, :, 1]

    @property
    def priors(self) -> Floats:
        """[M, A] softmax of the logits; a view."""
        return self.facts[:, :, 2]

    def columns(self, rows: Ints) -> Floats:
        """Facts of some rows as [3, A, R]: sums and maxima over actions are several times faster along such columns."""
        return self.facts.take(rows, 0).transpose(2, 1, 0).copy()

    def point(self, rows: Ints, edges: Ints) -> None:
        """Choose an edge for each of the rows, [R]."""
        self.edges[rows] = edges
        self.follow[rows] = self.ways.take(edges)


def plant(root: Root, *, room: int, depth: int | None, below: Tree | None = None) -> Nodes:
    """Nodes with their roots in place and room for so many more each, on top of a tree to go on from, if any."""
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
    """The trees as others read them: row numbers become node numbers.

    Arrays are shared with the nodes, which end here.
    """

    def by_root(flat: NDArray[Any]) -> NDArray[Any]:
        return flat[1:].reshape(nodes.batch, nodes.capacity, *flat.shape[1:])

    parents = by_root(nodes.parents)
    children = by_root(nodes.children)
    actions = np.where(parents > 0, by_root(nodes.actions), -1)
    for rows in (parents, children):
        rows -= nodes.roots.reshape(-1, *[1] * (rows.ndim - 1))
        np.maximum(rows, -1, out=rows)  # row 0, none, was below all roots
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
    """Put a tree into fresh nodes: what `harvest` does, backwards."""
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
    """Probabilities over the first axis, [A, R], none of them below `LEAST_PRIOR`."""
    weights = np.exp(columns - np.maximum.reduce(columns, 0))
    weights /= np.ones(len(weights)).dot(weights)
    floored: Floats = np.maximum(weights, LEAST_PRIOR, out=weights)
    return floored
