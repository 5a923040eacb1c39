"""Tree search in a learned model (MuZero), for many roots at once.

Each simulation goes down every tree by the choices of the rule until it reaches an untried action,
calls the model once for all trees, adds the new nodes, and updates the nodes on the paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from trainenv.planners.search.batched_tree import BatchedSearch
from trainenv.planners.search.contract import Bools, Recurrent, Root, SearchResult, Tree
from trainenv.planners.search.node_arrays import Nodes, harvest, plant
from trainenv.planners.search.rules import Chooser, Rule
from trainenv.planners.search.single_tree import SingleSearch
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
) -> SearchResult:
    """Search from B roots.

    Args:
        root: States to search from.
        model: Model that returns the next state for a state and an action.
        rule: Rule that chooses actions: `Gumbel(…)` or `PUCT(…)`.
        simulations: Number of simulations a root, at least 1.
        generator: Source of all randomness.
        legal: Actions that may be taken at the root, [B, A]; None for all.
        depth: Decisions that remain; None for no limit. A state at that depth is final: its return
            is its value.
        discount: Weight of the return after a decision against its reward, above 0, at most 1.
        below: Trees to continue from, made by `subtree`. Their roots take value, policy and latent
            from `root`.
        stop: Function called after each simulation; True ends the search there.

    Raises:
        UserError: An argument is out of range or does not fit the others, or the model returns
            arrays of the wrong shape or numbers that are not finite. Numbers are checked once, at
            the end.
    """
    _check(root, legal=legal, simulations=simulations, depth=depth, discount=discount, below=below)
    if below is not None and legal is not None:
        below = without(below, ~legal)
    nodes = plant(root, room=simulations, depth=depth, below=below)
    first = nodes.used
    chooser = rule.begin(nodes, legal=legal, simulations=simulations, generator=generator)
    loop = _search_batch
    if nodes.batch == 1:
        loop = _search_single
    with np.errstate(all="ignore"):  # numbers that are not finite are reported at the end
        evaluations = loop(
            nodes, model, chooser, depth=depth, discount=discount, turns=_turns(simulations, stop)
        )
    _check_finite(nodes, first)
    output = chooser.conclude()
    tree = harvest(nodes)
    return SearchResult(
        action=output.action,
        ranking=output.ranking,
        policy=output.policy,
        q=output.q,
        visits=tree.visits[:, 0].copy(),
        value=tree.values[:, 0].copy(),
        evaluations=evaluations,
        tree=tree,
    )


def _turns(simulations: int, stop: Callable[[], bool] | None) -> Iterator[int]:
    """Yield one number a simulation, at least one, until `stop` returns True."""
    for turn in range(simulations):
        if turn and stop is not None and stop():
            return
        yield turn


def _search_batch(
    nodes: Nodes,
    model: Recurrent,
    chooser: Chooser,
    *,
    depth: int | None,
    discount: float,
    turns: Iterator[int],
) -> int:
    """Run all simulations; return the number of states that the model evaluated."""
    batched = BatchedSearch(nodes, model, chooser, depth=depth, discount=discount)
    passed = None
    for _ in turns:
        if passed is not None:
            chooser.after_backup(passed)
        passed = batched.simulate()
    return batched.evaluations


def _search_single(
    nodes: Nodes,
    model: Recurrent,
    chooser: Chooser,
    *,
    depth: int | None,
    discount: float,
    turns: Iterator[int],
) -> int:
    """Run all simulations from a single root; see `_search_batch`."""
    single = SingleSearch(nodes, model, depth=depth, discount=discount)
    picker = chooser.picker(single.tree)
    for _ in turns:
        single.simulate(picker)
    single.finish()
    return single.evaluations


def _check(
    root: Root,
    *,
    legal: Bools | None,
    simulations: int,
    depth: int | None,
    discount: float,
    below: Tree | None,
) -> None:
    _check_root(root)
    if simulations < 1 or (depth is not None and depth < 1):
        raise UserError(
            f"simulations and depth must be at least 1, found {simulations} and {depth}; "
            "give whole numbers from 1 on"
        )
    if not 0 < discount <= 1:
        raise UserError(
            f"discount must be above 0 and at most 1, found {discount!r}; 1 discounts nothing"
        )
    if legal is not None:
        _check_legal(legal, root.logits.shape)
    if below is not None:
        has = (*below.children.shape[::2], *below.latent.shape[2:])
        needs = (*root.logits.shape, *root.latent.shape[1:])
        if has != needs:
            raise UserError(
                f"the trees to continue from must have roots, actions and latents of {needs}, "
                f"found {has}; take the subtree of a search of the same shape"
            )


def _check_root(root: Root) -> None:
    shape = root.logits.shape
    batch = shape[:1]
    fits = root.value.shape == batch and root.latent.shape[:1] == batch
    if len(shape) != 2 or 0 in shape or not fits:
        raise UserError(
            "a root must have value [B], logits [B, A] and latent [B, …], "
            f"found {root.value.shape}, {shape} and {root.latent.shape}; give one row a root"
        )
    for name, found in (("value", root.value), ("logits", root.logits)):
        if not np.isfinite(found).all():
            wrong = found[~np.isfinite(found)][0]
            raise UserError(f"a root's {name} must be finite, found {wrong}; mend the model")


def _check_legal(legal: Bools, shape: tuple[int, ...]) -> None:
    if legal.dtype != np.bool_ or legal.shape != shape:
        raise UserError(
            f"legal must be bool {list(shape)}, found {legal.dtype} {list(legal.shape)}; "
            "give one row a root"
        )
    if not legal.any(axis=1).all():
        raise UserError(
            f"each root must have a legal action, found none at root "
            f"{int(legal.any(axis=1).argmin())}; allow at least one, such as doing nothing"
        )


def _check_finite(nodes: Nodes, first: int) -> None:
    """Check the numbers of this search: its nodes are those from `first` on."""
    for name in ("rewards", "values", "logits"):
        sound = np.isfinite(getattr(nodes, name)[1:])
        if sound.all():
            continue
        by_tree = sound.reshape(nodes.batch, nodes.capacity, -1)[:, first:].all(axis=2)
        place, root = np.argwhere(~by_tree.T)[0].tolist()
        raise UserError(
            f"the model must return finite numbers, found {name} that are not at node "
            f"{first + place} of root {root}; mend the model or its inputs"
        )
