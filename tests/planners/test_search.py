"""What must hold of any search, and how it tells of mistakes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.search_cases import RULES, Given, root_of, searched
from tests.support.search_reference import World
from trainenv.planners.search import PUCT, Gumbel, Root, search, subtree
from trainenv.types import UserError


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    roots=st.integers(1, 4),
    actions=st.integers(1, 5),
    simulations=st.integers(1, 25),
    depth=st.none() | st.integers(1, 4),
    discount=st.sampled_from([1.0, 0.95, 0.5]),
    rule=st.sampled_from(["gumbel", "puct"]),
)
def test_a_tree_adds_up(
    seed: int,
    roots: int,
    actions: int,
    simulations: int,
    depth: int | None,
    discount: float,
    rule: str,
) -> None:
    world = World.random(np.random.default_rng(seed), actions=actions)
    found = searched(
        world,
        np.arange(roots),
        rule=RULES[rule],
        seed=seed,
        simulations=simulations,
        depth=depth,
        discount=discount,
    )
    tree = found.tree
    assert found.visits.sum(axis=1).tolist() == [simulations] * roots
    np.testing.assert_allclose(found.policy.sum(axis=1), 1.0)
    assert (np.sort(found.ranking, axis=1) == np.arange(actions)).all()
    assert (found.value == tree.values[:, 0]).all()
    assert (tree.depths <= (depth or simulations)).all()
    for b, node, action in np.argwhere(tree.children > 0):
        child = tree.children[b, node, action]
        assert child > node
        assert (tree.parents[b, child], tree.actions[b, child]) == (node, action)
        assert tree.depths[b, child] == tree.depths[b, node] + 1
        later = tree.values[
            b, child
        ]  # of a final node its own value alone, however often it is visited
        assert tree.q[b, node, action] == pytest.approx(
            tree.rewards[b, child] + discount * later, abs=1e-9
        )
        if tree.depths[b, child] != depth:
            assert tree.visits[b, node, action] == 1 + tree.visits[b, child].sum()
    assert ((tree.visits > 0) == (tree.children > 0)).all()
    linked = (tree.children > 0).sum(axis=(1, 2))
    assert ((tree.parents >= 0).sum(axis=1) == linked).all()


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_the_same_seed_gives_the_same_tree_and_nothing_given_is_changed(rule: str) -> None:
    world = World.random(np.random.default_rng(8), actions=5)
    root = root_of(world, [3, 4])
    copies = [array.copy() for array in (root.value, root.logits, root.latent)]
    one, two, other = (
        search(root, world, rule=RULES[rule], simulations=30, generator=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    for name in ("parents", "children", "visits", "q", "latent"):
        assert (getattr(one.tree, name) == getattr(two.tree, name)).all()
    assert (one.tree.children != other.tree.children).any()
    for array, copy in zip((root.value, root.logits, root.latent), copies):
        assert (array == copy).all()
    below = subtree(one.tree, one.action)
    kept = [below.visits.copy(), below.q.copy(), below.children.copy()]
    search(root, world, rule=RULES[rule], simulations=5, generator=np.random.default_rng(0), below=below,
           legal=np.tile([True, False, True, True, True], (2, 1)))  # fmt: skip
    assert all(
        (array == copy).all() for array, copy in zip((below.visits, below.q, below.children), kept)
    )


def test_a_masked_action_is_as_if_it_were_not_there() -> None:
    world = World.random(np.random.default_rng(9), actions=5)
    keep = [0, 2, 4]
    small = World(
        world.follow[:, keep], world.rewards[:, keep], world.values, world.logits[:, keep]
    )
    mask = np.tile(np.isin(np.arange(5), keep), (2, 1))
    noise = np.random.default_rng(0).gumbel(size=(2, 5))
    for depth_one in ({"depth": 1, "simulations": 11}, {"depth": 1, "simulations": 40}):
        masked = searched(world, [1, 2], legal=mask, generator=Given(noise), **depth_one)
        absent = searched(small, [1, 2], generator=Given(noise[:, keep]), **depth_one)
        assert (masked.visits[:, keep] == absent.visits).all()
        np.testing.assert_allclose(masked.policy[:, keep], absent.policy, rtol=1e-12)
        assert masked.visits[:, [1, 3]].sum() == masked.policy[:, [1, 3]].sum() == 0
        assert set(masked.ranking[:, 3:].ravel()) == {1, 3}


def test_the_model_is_asked_once_a_simulation_and_not_at_all_for_what_is_final_and_known() -> None:
    world = World.random(np.random.default_rng(10), actions=3)
    calls: list[int] = []

    def counting(latent: np.ndarray, actions: np.ndarray) -> Any:
        calls.append(len(actions))
        return world(latent, actions)

    for roots, depth, expected in (
        (1, None, [1] * 20),
        (2, None, [2] * 20),
        (1, 1, [1] * 3),
        (2, 1, [2] * 3),
    ):
        calls.clear()
        found = search(
            root_of(world, range(roots)),
            counting,
            rule=Gumbel(),
            simulations=20,
            depth=depth,
            generator=np.random.default_rng(0),
        )
        assert calls == expected
        assert found.evaluations == sum(expected)


def test_single_precision_long_searches_and_hopeless_priors_do_no_harm() -> None:
    world = World.random(np.random.default_rng(11), actions=3)
    single = World(
        world.follow, *(a.astype(np.float32) for a in (world.rewards, world.values, world.logits))
    )
    single.logits[:, 1] = -3000.0  # e^−3000 is 0
    for roots in (1, 2):
        for rule in RULES.values():
            found = searched(
                single, np.arange(roots), rule=rule, simulations=700 if roots == 1 else 100
            )
            assert found.visits.sum(axis=1).tolist() == [700 if roots == 1 else 100] * roots
            assert np.isfinite(found.q).all()
            assert np.isfinite(found.policy).all()


def test_going_on_below_an_action_that_was_not_tried_starts_empty() -> None:
    world = World.random(np.random.default_rng(12), actions=4)
    found = searched(world, [0, 1], rule=Gumbel(considered=2), simulations=6)
    untried, tried = int(np.flatnonzero(found.visits[0] == 0)[0]), int(found.action[1])
    below = subtree(found.tree, np.array([untried, tried]))
    assert below.visits[0].sum() == 0
    assert (below.parents[0] == -1).all()
    assert below.visits[1, 0].sum() == found.visits[1, tried] - 1
    states = [int(world.follow[0, untried]), int(world.follow[1, tried])]
    again = searched(world, states, below=below, simulations=6)
    fresh = searched(world, states, simulations=6)
    assert (again.visits[0] == fresh.visits[0]).all()
    assert again.visits[1].sum() == 6 + below.visits[1, 0].sum()


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", [0, 1, 2])
@pytest.mark.parametrize("roots", [1, 3])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_a_model_that_returns_no_number_is_named(
    what: int, roots: int, number: float, rule: str
) -> None:
    world = World.random(np.random.default_rng(13), actions=3)
    calls = 0

    def broken(latent: np.ndarray, actions: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        found = [np.array(part, dtype=float) for part in world(latent, actions)[:3]]
        if calls >= 4:
            found[what][-1:] = number
        return (*found, latent)

    name = ("rewards", "values", "logits")[what]
    with pytest.raises(UserError, match=f"{name} that are not at node 4 of root {roots - 1}"):
        search(
            root_of(world, range(roots)),
            broken,
            rule=RULES[rule],
            simulations=9,
            generator=np.random.default_rng(0),
        )


@pytest.mark.parametrize("roots", [1, 2])
def test_a_model_that_returns_other_shapes_is_told(roots: int) -> None:
    world = World.random(np.random.default_rng(14), actions=3)
    for what in range(4):

        def broken(latent: np.ndarray, actions: np.ndarray, what: int = what) -> Any:
            found = list(world(latent, actions))
            found[what] = found[what][..., None]
            return tuple(found)

        with pytest.raises(UserError, match="of the shapes"):
            search(
                root_of(world, range(roots)),
                broken,
                rule=Gumbel(),
                simulations=2,
                generator=np.random.default_rng(0),
            )


def test_wrong_arguments_are_told() -> None:
    world = World.random(np.random.default_rng(15), actions=3)
    tree = searched(world, [0, 1]).tree
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"simulations": 0}, "at least 1, found 0"),
        ({"depth": 0}, "at least 1"),
        ({"discount": 0.0}, "discount"),
        ({"discount": 1.5}, "discount"),
        ({"legal": np.zeros((1, 3), dtype=bool)}, "found none at root 0"),
        ({"legal": np.ones((2, 3), dtype=bool)}, r"bool \[1, 3\]"),
        ({"legal": np.ones((1, 3))}, "float64"),
        ({"below": tree}, "continue from"),
    ]
    for options, match in wrong:
        with pytest.raises(UserError, match=match):
            searched(world, **options)
    root = root_of(world, 0)
    for bad, match in (
        (
            Root(value=root.value * math.nan, logits=root.logits, latent=root.latent),
            "value must be finite",
        ),
        (
            Root(value=root.value, logits=root.logits * math.inf, latent=root.latent),
            "logits must be finite",
        ),
        (Root(value=root.value, logits=root.logits[0], latent=root.latent), "a root must have"),
        (Root(value=root.value, logits=root.logits[:, :0], latent=root.latent), "a root must have"),
    ):
        with pytest.raises(UserError, match=match):
            search(bad, world, rule=Gumbel(), simulations=3, generator=np.random.default_rng(0))
    for kind, name, value in (
        (Gumbel, "considered", 0), (Gumbel, "gumbel_scale", -1.0), (Gumbel, "value_scale", math.nan),
        (PUCT, "untried", "highest"), (PUCT, "noise", 1.5), (PUCT, "c_base", 0.0),
        (PUCT, "temperature", math.inf), (PUCT, "concentration", 0.0),
    ):  # fmt: skip
        with pytest.raises(UserError, match=name):
            kind(**{name: value})
