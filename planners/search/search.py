"""Tree search in a learned model (MuZero), for many roots at once, with one call of the model a simulation.

Each simulation goes down every tree by the rule's choices until an action that was not tried, asks
the model for what comes of it, adds that node, and tells the nodes it passed what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from trainenv.planners.search.batched_tree import Growth
from trainenv.planners.search.node_arrays import Nodes, harvest, plant
from trainenv.planners.search.rules import Bools, Chooser, Recurrent, Root, Rule, Searched, Tree
from trainenv.planners.search.single_tree import LoneGrowth
from trainenv.planners.search.subtree import without
from trainenv.types import UserError


def search(
    root: Root,
    model: Recurrent,
    /,
    *,
    rule: Rule,
    simulations: int,
    generator: np.random.Generator,
    legal: Bools | None = None,
    depth: int | None = None,
    discount: float = 1.0,
    below: Tree | None = None,
    stop: Callable[[], bool] | None = None,
) -> Searched:
    """Search from B roots.

    Args:
        root: the states to search from.
        model: what comes of an action in a state.
        rule: `Gumbel(…)` or `PUCT(…)`.
        simulations: of each root, at least 1.
        generator: all chance comes from it.
        legal: [B, A] actions that may be taken at the root; None for all.
        depth: decisions that remain: a state so many decisions from the root is final, and its
            value stands. None: no limit.
        discount: weight of the return after a decision against its reward, above 0 up to 1.
        below: trees to go on from (`subtree`); the roots of them get `root`'s value, policy and
            latent instead of their own.
        stop: asked after each simulation; True ends the search there.

    Raises:
        UserError: an argument is out of range or does not fit the others, or the model returns what
            is no number or has another shape. Numbers are looked at once, at the end.
    """
    _check(root, legal=legal, simulations=simulations, depth=depth, discount=discount, below=below)
    if below is not None and legal is not None:
        below = without(below, ~legal)
    nodes = plant(root, room=simulations, depth=depth, below=below)
    chooser = rule.begin(nodes, legal=legal, simulations=simulations, generator=generator)
    loop = _alone if nodes.batch == 1 else _together
    with np.errstate(
        all="ignore"
    ):  # what is no number goes through to the end, and is reported there
        evaluations = loop(
            nodes, model, chooser, depth=depth, discount=discount, turns=_turns(simulations, stop)
        )
    first = 1 if below is None else below.parents.shape[1]
    _check_finite(nodes, first)
    verdicts = chooser.conclude()
    tree = harvest(nodes)
    return Searched(
        action=verdicts.action,
        ranking=verdicts.ranking,
        policy=verdicts.policy,
        q=verdicts.q,
        visits=tree.visits[:, 0].copy(),
        value=tree.values[:, 0].copy(),
        evaluations=evaluations,
        tree=tree,
    )


def _turns(simulations: int, stop: Callable[[], bool] | None) -> Iterator[int]:
    """One number a simulation; the first in any case."""
    for turn in range(simulations):
        if turn and stop is not None and stop():
            return
        yield turn


def _together(
    nodes: Nodes,
    model: Recurrent,
    chooser: Chooser,
    *,
    depth: int | None,
    discount: float,
    turns: Iterator[int],
) -> int:
    """All simulations; how many states the model was asked for."""
    growth = Growth(nodes, model, chooser, depth=depth, discount=discount)
    passed = None
    for _ in turns:
        if passed is not None:
            chooser.after_backup(passed)
        passed = growth.simulate()
    return growth.evaluations


def _alone(
    nodes: Nodes,
    model: Recurrent,
    chooser: Chooser,
    *,
    depth: int | None,
    discount: float,
    turns: Iterator[int],
) -> int:
    """The same for a single root."""
    growth = LoneGrowth(nodes, model, depth=depth, discount=discount)
    picker = chooser.alone(growth.tree)
    for _ in turns:
        growth.simulate(picker)
    growth.finish()
    return growth.evaluations


def _check(
    root: Root,
    *,
    legal: Bools | None,
    simulations: int,
    depth: int | None,
    discount: float,
    below: Tree | None,
) -> None:
    shape = root.logits.shape
    if (
        len(shape) != 2
        or 0 in shape
        or root.value.shape != shape[:1]
        or root.latent.shape[:1] != shape[:1]
    ):
        raise UserError(
            f"a root has value [B], logits [B, A] and latent [B, …], found {root.value.shape}, {shape}, {root.latent.shape}"
        )
    for name, found in (("value", root.value), ("logits", root.logits)):
        if not np.isfinite(found).all():
            raise UserError(
                f"a root's {name} must be finite, found {found[~np.isfinite(found)][0]}; mend the model"
            )
    if simulations < 1 or (depth is not None and depth < 1):
        raise UserError(
            f"simulations and depth must be at least 1, found {simulations} and {depth}"
        )
    if not 0 < discount <= 1:
        raise UserError(f"discount must be above 0 up to 1, found {discount!r}")
    if legal is not None:
        if legal.dtype != np.bool_ or legal.shape != shape:
            raise UserError(
                f"legal must be bool {list(shape)}, found {legal.dtype} {list(legal.shape)}"
            )
        if not legal.any(axis=1).all():
            raise UserError(
                f"root {int(legal.any(axis=1).argmin())} has no legal action; allow at least one, doing nothing say"
            )
    if below is not None:
        has = (*below.children.shape[::2], *below.latent.shape[2:])
        needs = (*shape, *root.latent.shape[1:])
        if has != needs:
            raise UserError(
                f"the trees to go on from must be for roots, actions and latents of {needs}, found {has}"
            )


def _check_finite(nodes: Nodes, first: int) -> None:
    """Nodes from `first` on are those of this search, one a simulation."""
    for name in ("rewards", "values", "logits"):
        sound = np.isfinite(getattr(nodes, name)[1:])
        if sound.all():
            continue
        by_tree = sound.reshape(nodes.batch, nodes.capacity, -1)[:, first:].all(axis=2)
        place, root = np.argwhere(~by_tree.T)[0].tolist()
        raise UserError(
            f"the model must return finite numbers, found {name} that are not at node {first + place} of root {root}; "
            "mend the model or what it was given"
        )
