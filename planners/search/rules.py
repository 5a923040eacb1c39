"""Rules choose the actions of a search: the protocol of a rule and of its chooser."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from trainenv.planners.search.contract import Bools, Ints, PolicyOutput
from trainenv.planners.search.node_arrays import Nodes
from trainenv.planners.search.single_tree import Picker, SingleTree


class Chooser(Protocol):
    """Chooses actions in one search.

    It records its choice for a row of `Nodes` with `Nodes.point`.
    """

    def before_step(self, rows: Ints, /) -> None:
        """Prepare one step down all trees.

        Args:
            rows: Row where the path of each root is now, [B]; 0 where the path has ended.
        """
        ...

    def after_backup(self, rows: Ints, /) -> None:
        """Take in a simulation; called after each but the last.

        Args:
            rows: Rows that the simulation passed, [R], each once, the B roots first.
        """
        ...

    def picker(self, tree: SingleTree, /) -> Picker:
        """Return the picker for a search from one root; it replaces the two methods above."""
        ...

    def conclude(self) -> PolicyOutput:
        """Return the conclusion about the roots; called once at the end."""
        ...


class Rule(Protocol):
    """A rule: a frozen dataclass of hyperparameters that says how actions are chosen."""

    def begin(
        self,
        nodes: Nodes,
        /,
        *,
        legal: Bools | None,
        simulations: int,
        generator: np.random.Generator,
    ) -> Chooser:
        """Start a search; called once, when the roots are in place.

        When it returns, `nodes.point` must have been called for the roots, unless `before_step`
        does that.

        Args:
            nodes: Arrays that hold the trees.
            legal: Legal actions, [B, A], at least one a root; None if all are legal.
            simulations: Number of simulations to come.
            generator: Source of all randomness.
        """
        ...
