"""Parts of a searched tree as trees of their own, to continue a search from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.search.contract import Bools, Ints, Tree


def subtree(tree: Tree, actions: Ints) -> Tree:
    """Return the trees below one action of each root.

    The node below the action becomes the root; where the action was not tried, the tree is empty.
    Nodes keep their order and close the gaps. All trees are as wide as the largest of them.

    Args:
        tree: Trees of a search.
        actions: Action of each root, [B].
    """
    each = np.arange(len(tree.parents))
    tops = tree.children[each, 0, actions]  # [B], −1 where there is none
    kept = np.zeros(tree.parents.shape, dtype=np.bool_)
    kept[each, tops] = tops >= 0
    return _compacted(tree, _with_descendants(tree, kept), rise=1)


def without(tree: Tree, illegal: Bools) -> Tree:
    """Return the trees without everything below some actions of the roots, [B, A]."""
    below = tree.children[:, 0]
    dropped = np.zeros(tree.parents.shape, dtype=np.bool_)
    trees, actions = np.nonzero(illegal & (below >= 0))
    dropped[trees, below[trees, actions]] = True
    alive = tree.parents >= 0
    alive[:, 0] = True
    left = _compacted(tree, alive & ~_with_descendants(tree, dropped), rise=0)
    for found in (left.visits, left.q):
        found[:, 0][illegal] = 0
    return left


def _with_descendants(tree: Tree, marked: Bools) -> Bools:
    """Mark everything below a marked node too, in place; [B, N]."""
    each = np.arange(len(marked))
    for node in range(1, marked.shape[1]):  # parents come before their children
        above = tree.parents[:, node]
        marked[:, node] |= marked[each, above] & (above >= 0)
    return marked


def _compacted(tree: Tree, kept: Bools, *, rise: int) -> Tree:
    """Return the kept nodes, [B, N], without gaps and `rise` decisions nearer to the root."""
    each = np.arange(len(kept))
    width = max(1, int(kept.sum(axis=1).max()))
    order = np.argsort(~kept, axis=1, kind="stable")[:, :width]  # [B, N'] old numbers
    there = np.take_along_axis(kept, order, 1)
    numbers = np.where(kept, kept.cumsum(axis=1) - 1, -1)  # [B, N] new numbers by old ones

    def moved(old: NDArray[Any], empty: int = 0) -> NDArray[Any]:
        spread = (slice(None), slice(None), *[None] * (old.ndim - 2))
        return np.where(
            there[spread], old[each[:, None], order], np.asarray(empty, dtype=old.dtype)
        )

    def renumbered(old: Ints) -> Ints:
        trees = each.reshape(-1, *[1] * (old.ndim - 1))
        return np.where(old >= 0, numbers[trees, old], -1)

    actions = moved(tree.actions, -1)
    actions[:, 0] = -1
    return Tree(
        parents=moved(renumbered(tree.parents), -1),
        actions=actions,
        depths=moved(tree.depths - rise),
        rewards=moved(tree.rewards),
        raw_values=moved(tree.raw_values),
        logits=moved(tree.logits),
        children=moved(renumbered(tree.children), -1),
        visits=moved(tree.visits),
        q=moved(tree.q),
        latent=moved(tree.latent),
    )
