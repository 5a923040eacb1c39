"""What goes into a search and what comes out. B roots, N nodes a root, A actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trainenv.planners.search.node_arrays import Nodes
    from trainenv.planners.search.single_tree import LoneTree

Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.intp]
Bools: TypeAlias = NDArray[np.bool_]
Stepped: TypeAlias = tuple[Floats, Floats, Floats, NDArray[Any]]

Recurrent: TypeAlias = Callable[[NDArray[Any], Ints], Stepped]
"""A model: (latent [B, …], actions [B]) → (reward [B], value [B], logits [B, A], latent [B, …]).

`reward` belongs to the action just taken, `value` to all that comes after it. Called once a
simulation for all roots together, and at most that often. It may keep neither its arguments nor
write into them. """


@dataclass(frozen=True, kw_only=True)
class Root:
    """What is known of the states to search from: a representation's latent and its prediction.

    Attributes:
        value: [B] return expected from here on.
        logits: [B, A] of the policy; need not be normalised.
        latent: [B, …] states, for the model alone.
    """

    value: Floats
    logits: Floats
    latent: NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The trees of a search, one a root.

    Node 0 is the root, and a child's number is above its parent's.

    A node is in the tree if it is node 0 or has a parent; other numbers are holes, and what stands
    there means nothing.

    Attributes:
        parents: [B, N] node above, −1 for the root and for holes.
        actions: [B, N] action that led here, −1 for the root and for holes.
        depths: [B, N] decisions from the root.
        rewards: [B, N] of the action that led here.
        raw_values: [B, N] the model's value of this node alone.
        logits: [B, N, A] of its policy, as the model gave them.
        children: [B, N, A] node below, −1 where the action was not tried.
        visits: [B, N, A] simulations that took the action.
        q: [B, N, A] mean return of those from here on, 0 where there was none.
        latent: [B, N, …] states.
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
        """[B, N] mean of the model's own value of a node and of all returns that were seen from it."""
        count = self.visits.sum(axis=2)
        mean: Floats = (self.raw_values + (self.visits * self.q).sum(axis=2)) / (1 + count)
        return mean


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What a rule makes of the searched roots.

    Attributes:
        action: [B] the one to take.
        ranking: [B, A] actions, best first, illegal ones last.
        policy: [B, A] target to train a policy on, 0 for illegal actions; sums to 1.
        q: [B, A] completed values: of actions that were never tried what the rule puts in their
            place.
    """

    action: Ints
    ranking: Ints
    policy: Floats
    q: Floats


@dataclass(frozen=True, kw_only=True)
class Searched(Verdicts):
    """The outcome of a search.

    Attributes:
        visits: [B, A] simulations that took each action at the root, those of a tree that was gone
            on from included.
        value: [B] return expected from the root: the mean of its own value and of all returns that
            were seen.
        evaluations: states that the model was asked for.
        tree: all of it.
    """

    visits: Ints
    value: Floats
    evaluations: int
    tree: Tree = field(repr=False)


class Chooser(Protocol):
    """Chooses actions in one search.

    It writes its choice for a row of `Nodes` with `Nodes.point`.
    """

    def before_step(self, rows: Ints, /) -> None:
        """Called on the way down with the row of each root's path, [B]; row 0 where the path has ended."""
        ...

    def after_backup(self, rows: Ints, /) -> None:
        """Called after a simulation, but for the last, with the rows it passed, [R], each once, the B roots first."""
        ...

    def alone(self, tree: LoneTree, /) -> Picker:
        """Called once instead of the two above where there is a single root: what chooses in that tree."""
        ...

    def conclude(self) -> Verdicts:
        """Called at the end."""
        ...


class Picker(Protocol):
    """Chooses the same actions as its chooser, in the lists of a single tree, which it only reads."""

    def at_root(self) -> int:
        """The action to take at the root. Called once a simulation."""
        ...

    def below(self, node: int, /) -> int:
        """The action to take at another node."""
        ...


class Rule(Protocol):
    """How actions are chosen: a frozen dataclass of hyperparameters."""

    def begin(
        self,
        nodes: Nodes,
        /,
        *,
        legal: Bools | None,
        simulations: int,
        generator: np.random.Generator,
    ) -> Chooser:
        """Called once a search, when the roots are in place; `nodes.point` must have been called for the roots at the end.

        Args:
            nodes: the trees.
            legal: [B, A], at least one action a root; None where all are.
            simulations: how many there will be.
            generator: all chance comes from it.
        """
        ...
