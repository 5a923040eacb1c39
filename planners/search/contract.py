"""Inputs and outputs of a search: roots, the model, trees. B roots, N nodes a root, A actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.intp]
Bools: TypeAlias = NDArray[np.bool_]
Transition: TypeAlias = tuple[Floats, Floats, Floats, NDArray[Any]]

Recurrent: TypeAlias = Callable[[NDArray[Any], Ints], Transition]
"""A model: (latent [B, …], actions [B]) → (reward [B], value [B], logits [B, A], latent [B, …]).

`reward` belongs to the action just taken, `value` to everything after it. The search calls the
model at most once a simulation, for all roots together. The model must not keep its arguments or
write into them. """


@dataclass(frozen=True, kw_only=True)
class Root:
    """The states to search from: the model's latent of each and its predictions.

    Attributes:
        value: Return expected from here on, [B].
        logits: Logits of the policy, [B, A]; they need not be normalised.
        latent: Latent states, [B, …]; only the model reads them.
    """

    value: Floats
    logits: Floats
    latent: NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The trees of a search, one a root.

    Node 0 is the root. The number of a child is above its parent's. A node is in the tree if it is
    node 0 or has a parent; all other numbers are holes, and their values mean nothing.

    Attributes:
        parents: Parent of each node, [B, N]; −1 for the root and for holes.
        actions: Action that led to each node, [B, N]; −1 for the root and for holes.
        depths: Decisions from the root to each node, [B, N].
        rewards: Reward of the action that led to each node, [B, N].
        raw_values: Value that the model gave to each node, [B, N].
        logits: Policy logits that the model gave to each node, [B, N, A].
        children: Child below each action, [B, N, A]; −1 where the action was not tried.
        visits: Number of simulations that took each action, [B, N, A].
        q: Mean return of these simulations from the node on, [B, N, A]; 0 without visits.
        latent: Latent states, [B, N, …].
    """

    parents: Ints = field(repr=False)
    actions: Ints = field(repr=False)
    depths: Ints = field(repr=False)
    rewards: Floats = field(repr=False)
    raw_values: Floats = field(repr=False)
    logits: Floats = field(repr=False)
    children: Ints = field(repr=False)
    visits: Ints = field(repr=False)
    q: Floats = field(repr=False)
    latent: NDArray[Any] = field(repr=False)

    @property
    def values(self) -> Floats:
        """Mean of the model's own value of a node and of all returns seen from it, [B, N]."""
        count = self.visits.sum(axis=2)
        mean: Floats = (self.raw_values + (self.visits * self.q).sum(axis=2)) / (1 + count)
        return mean


@dataclass(frozen=True, kw_only=True)
class PolicyOutput:
    """The conclusion of a rule about the roots.

    Attributes:
        action: Action to take, [B].
        ranking: Actions from best to worst, [B, A]; illegal ones come last.
        policy: Target to train a policy on, [B, A]; 0 for illegal actions, rows sum to 1.
        q: Completed values, [B, A]: for actions never tried, the value that the rule assumes.
    """

    action: Ints
    ranking: Ints
    policy: Floats
    q: Floats


@dataclass(frozen=True, kw_only=True)
class SearchResult(PolicyOutput):
    """The outcome of a search.

    Attributes:
        visits: Simulations that took each action at the root, [B, A]; those of a reused tree count.
        value: Return expected from the root, [B]: the mean of its own value and all returns seen.
        evaluations: Number of states that the model evaluated.
        tree: All trees.
    """

    visits: Ints
    value: Floats
    evaluations: int
    tree: Tree = field(repr=False)
