"""The search against an independent one, on random small worlds and on golden trees: whole trees and what is chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.search_cases import Given, assert_same_tree, mask_of, searched
from tests.support.search_golden import CASES, GOLDEN, solve
from tests.support.search_reference import GumbelReference, Node, PUCTReference, World
from trainenv.planners.search import PUCT, Gumbel, subtree


def random_case(
    rule: str, seed: int
) -> tuple[World, dict[str, Any], list[list[int]], np.ndarray, Any]:
    """A world, options of a search, legal actions and noise of three roots, and the rule for it."""
    rng = np.random.default_rng([seed, len(rule)])
    actions = int(rng.integers(1, 7))
    world = World.random(rng, actions=actions, spread=float(rng.choice([1e-3, 1.0])))
    options = {
        "simulations": int(rng.integers(1, 33)),
        "depth": [None, 1, 2, 3][rng.integers(4)],
        "discount": float(rng.choice([1.0, 0.9, 0.3])),
    }
    masks = rng.random((3, actions)) < 0.7
    masks[:, rng.integers(actions)] = True
    if seed % 3 == 0:
        masks[:] = True
    legal = [np.flatnonzero(mask).tolist() for mask in masks]
    noise = (
        rng.gumbel(size=masks.shape) * rng.integers(2)
        if rule == "gumbel"
        else rng.gamma(0.3, size=masks.shape)
    )
    chosen = (
        Gumbel(considered=int(rng.integers(1, 9)))
        if rule == "gumbel"
        else PUCT(untried=("lowest", "node")[seed % 2])
    )
    return world, options, legal, noise, chosen


def reference(
    world: World,
    state: int,
    legal: list[int],
    noise: np.ndarray,
    rule: Any,
    below: Node | None = None,
    **options: Any,
) -> Any:
    extra = (
        {"considered": rule.considered} if isinstance(rule, Gumbel) else {"untried": rule.untried}
    )
    kind = GumbelReference if isinstance(rule, Gumbel) else PUCTReference
    return kind(
        world=world, state=state, legal=legal, noise=noise.tolist(), below=below, **options, **extra
    ).run()


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
@pytest.mark.parametrize("block", range(10))
def test_trees_and_choices_equal_those_of_the_independent_search(rule: str, block: int) -> None:
    for seed in range(25 * block, 25 * block + 25):  # 250 worlds a rule, three roots each
        world, options, legal, noise, chosen = random_case(rule, seed)
        expected = [reference(world, b, legal[b], noise[b], chosen, **options) for b in range(3)]
        mask = mask_of(legal, noise.shape[1])
        together = searched(
            world, np.arange(3), rule=chosen, legal=mask, generator=Given(noise), **options
        )
        for b in range(3):
            alone = searched(
                world, b, rule=chosen, legal=mask[b : b + 1], generator=Given(noise[b]), **options
            )
            for found, row in ((together, b), (alone, 0)):
                assert_same_tree(found.tree, row, expected[b].root)
                assert found.action[row] == found.ranking[row, 0] == expected[b].action
                policy = [expected[b].policy.get(action, 0.0) for action in range(noise.shape[1])]
                np.testing.assert_allclose(found.policy[row], policy, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_going_on_equals_the_independent_search_that_goes_on(rule: str) -> None:
    for seed in range(24):
        world, options, legal, noise, chosen = random_case(rule, seed)
        actions = noise.shape[1]
        everything = [list(range(actions))] * 3
        first = [reference(world, b, everything[b], noise[b], chosen, **options) for b in range(3)]
        found = searched(world, np.arange(3), rule=chosen, generator=Given(noise), **options)
        taken = [one.action for one in first]
        states = [one.root.children[action].state for one, action in zip(first, taken)]
        below = subtree(found.tree, np.array(taken))
        renewed = {**options, "simulations": 9}
        expected = [
            reference(
                world,
                states[b],
                legal[b],
                noise[b],
                chosen,
                first[b].root.children[taken[b]],
                **renewed,
            )
            for b in range(3)
        ]
        mask = mask_of(legal, actions)
        together = searched(
            world, states, rule=chosen, legal=mask, generator=Given(noise), below=below, **renewed
        )
        for b in range(3):
            own = searched(world, b, rule=chosen, generator=Given(noise[b]), **options)
            own_below = subtree(own.tree, np.array([taken[b]]))
            alone = searched(
                world,
                states[b],
                rule=chosen,
                legal=mask[b : b + 1],
                generator=Given(noise[b]),
                below=own_below,
                **renewed,
            )
            for again, row in ((together, b), (alone, 0)):
                assert_same_tree(again.tree, row, expected[b].root)
                assert again.action[row] == expected[b].action


# ── golden trees ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("copies", [1, 2])
def test_golden_trees(name: str, copies: int) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    world = World(**{key: np.array(value) for key, value in golden["world"].items()})
    options = dict(golden["options"])
    rule = Gumbel(considered=options.pop("considered")) if golden["rule"] == "gumbel" else PUCT()
    mask = np.tile(mask_of([golden["legal"]], len(golden["noise"])), (copies, 1))
    noise = np.tile(golden["noise"], (copies, 1))
    found = searched(world, [0] * copies, rule=rule, legal=mask, generator=Given(noise), **options)
    tree, nodes, b = found.tree, golden["nodes"], copies - 1
    assert found.action[b] == golden["action"]
    np.testing.assert_allclose(found.policy[b], golden["policy"], rtol=1e-9, atol=1e-12)
    in_tree = [0, *np.flatnonzero(tree.parents[b] >= 0)]
    assert len(in_tree) == len(nodes)
    numbers = {-1: -1} | {int(number): place for place, number in enumerate(in_tree)}
    for number, node in zip(in_tree, nodes):
        assert tree.latent[b, number, 0] == node["state"]
        assert tree.depths[b, number] == node["depth"]
        assert (tree.rewards[b, number], tree.raw_values[b, number]) == (
            node["reward"],
            node["value"],
        )
        assert [numbers[int(child)] for child in tree.children[b, number]] == node["children"]
        assert tree.visits[b, number].tolist() == node["visits"]
        np.testing.assert_allclose(tree.q[b, number], node["q"], rtol=0, atol=1e-11)


def test_golden_files_are_what_the_independent_search_writes() -> None:
    assert {path.stem for path in Path(GOLDEN).glob("*.json")} == set(CASES)
    for name, case in CASES.items():
        golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        again = solve(case | {"rule": golden["rule"]})
        assert again.pop("policy") == pytest.approx(
            golden.pop("policy"), rel=1e-12
        )  # the last bit of exp is the platform's
        assert again == golden
