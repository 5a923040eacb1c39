"""What the tests of the search share: known noise in place of chance, and trees compared node by node."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.search_reference import Node, World
from trainenv.planners.search import PUCT, Gumbel, Root, SearchResult, Tree, search

RULES: dict[str, Any] = {"gumbel": Gumbel(), "puct": PUCT()}


class Given:
    """Stands in for a generator: hands out noise that is known."""

    def __init__(self, noise: Any) -> None:
        self.noise = np.atleast_2d(np.asarray(noise, dtype=float))

    def gumbel(self, size: tuple[int, ...]) -> np.ndarray:
        assert size == self.noise.shape
        return self.noise

    def gamma(self, shape: float, size: tuple[int, ...]) -> np.ndarray:
        assert (shape, size) == (0.3, self.noise.shape)
        return self.noise


def mask_of(legal: list[list[int]], actions: int) -> np.ndarray:
    """Legal actions of each root as a mask [B, A]."""
    return np.array([[action in allowed for action in range(actions)] for allowed in legal])


def root_of(world: World, states: Any) -> Root:
    states = np.atleast_1d(states)
    return Root(value=world.values[states], logits=world.logits[states], latent=states[:, None])


def searched(
    world: World, states: Any = 0, *, rule: Any = None, seed: int = 0, **options: Any
) -> SearchResult:
    options = {"simulations": 20, "generator": np.random.default_rng(seed)} | options
    return search(root_of(world, states), world, rule=Gumbel() if rule is None else rule, **options)


def assert_same_tree(tree: Tree, b: int, node: Node, number: int = 0) -> None:
    """The tree of root `b` is the same as that of node objects, from a node on."""
    actions = range(len(node.logits))
    assert tree.visits[b, number].tolist() == [node.n(a) for a in actions]
    np.testing.assert_allclose(
        tree.q[b, number],
        [node.q(a) if node.n(a) else 0.0 for a in actions],
        rtol=1e-12,
        atol=1e-12,
    )
    assert (tree.latent[b, number, 0], tree.depths[b, number]) == (node.state, node.depth)
    assert tree.raw_values[b, number] == node.value
    assert tree.logits[b, number].tolist() == node.logits
    for action in actions:
        below = tree.children[b, number, action]
        assert (below > 0) == (action in node.children)
        if below > 0:
            child = node.children[action]
            assert (tree.parents[b, below], tree.actions[b, below]) == (number, action)
            assert tree.rewards[b, below] == child.reward
            assert_same_tree(tree, b, child, int(below))
