"""Monte Carlo tree search over sequences of interventions, in the world model (MuZero: Schrittwieser et al. 2020).

    1.  the model's state of the run now, its value and its policy                              1 inference
    2.  `considered` candidates, sampled from the policy without replacement; doing nothing is one of them
    3.  a search over sequences of them, `depth` decisions deep                                  1 inference a simulation
    4.  of each candidate the best sequence found that begins with it, ranked                    1 forecast each, of some

Variant `gumbel` (default) is Gumbel MuZero (Danihelka et al. 2022), `puct` that of MuZero;
`trainenv.planners.search` has the formulas. Sampling the actions to search over is Hubert et al.
2021 (Sampled MuZero); here one sample serves all nodes. What the masks forbid later on
(`masks_after`) is not chosen there.

The model is deterministic, so a sequence has one return: its rewards and the value where it ends,
the fall of ln loss until the end of the run with the divergence that the model foresees in it. The
score is the return of doing nothing now less that. It is not the mean over all that was tried below
a candidate, which holds exploration's failures too; means guide the search alone.

So scores are of the end of the run, whatever the problem's criterion. That shows in the forecasts,
which the best `forecasts` sequences get as far as the budget goes. With `rank_by="forecast"` all
sequences found are forecast and ranked by the criterion. Of `problem.proposals` the single
interventions are candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.hyperparameters import choice, number, whole
from trainenv.planners.search import PUCT, Gumbel, Recurrent, Root, Searched, Tree, search, subtree
from trainenv.planners.search.model_states import Imagined, ModelFailed, Path, State
from trainenv.planners.search.rules import Floats
from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.sequences import NOTHING, count, exhaustive
from trainenv.types import Intervention, Plan, PlanningProblem, UserError

Variant = Literal["gumbel", "puct"]
RankedBy = Literal["search", "forecast"]
FORECAST_DECISIONS = 4  # as far as a forecast looks


@dataclass(frozen=True, kw_only=True)
class MCTS:
    """Search sequences of interventions in the model.

    Args:
        variant: `gumbel` or `puct`.
        simulations: inferences after the first one.
        considered: candidates, doing nothing among them; at least 2.
        depth: decisions that a sequence may have, or what is left of the run. Those of more than
            four are not forecast.
        discount: weight of a return one decision later; 1 for runs of a fixed length.
        gumbel_scale: of the noise at the root of `gumbel`; 0 decides without.
        noise: share of Dirichlet noise at the root of `puct`.
        forecasts: how many of the best sequences are forecast beside.
        rank_by: `search` or `forecast`; see the module.
        reuse: go on from the tree of `problem.previous`, below what was done since. Old returns
            then count as much as new ones though they are not from what the run has become: worth
            it where the model foresees decisions well.

    Raises:
        UserError: a hyperparameter is out of range.
    """

    variant: Variant = "gumbel"
    simulations: int = 50
    considered: int = 16
    depth: int = 4
    discount: float = 1.0
    gumbel_scale: float = 0.0
    noise: float = 0.0
    forecasts: int = 6
    rank_by: RankedBy = "search"
    reuse: bool = False

    def __post_init__(self) -> None:
        choice("variant", self.variant, get_args(Variant))
        choice("rank_by", self.rank_by, get_args(RankedBy))
        whole("considered", self.considered, least=2)
        for name in ("simulations", "depth"):
            whole(name, getattr(self, name), least=1)
        whole("forecasts", self.forecasts, least=0)
        if self.rank_by == "forecast" and self.depth > FORECAST_DECISIONS:
            raise UserError(
                f"a model forecasts {FORECAST_DECISIONS} decisions: depth must be that or less, found {self.depth}"
            )
        number("discount", self.discount, above=0.0, most=1.0)
        number("gumbel_scale", self.gumbel_scale, least=0.0)
        number("noise", self.noise, least=0.0, most=1.0)

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Search, and rank what was found."""
        draft = PlanBuilder(problem, "mcts")
        model = draft.model
        if count(problem.masks) == 1:
            return draft.plan()
        if draft.over or draft.futures_left < 2:
            draft.exhausted = True
            return draft.plan()
        old = _left_over(problem, self.considered) if self.reuse else None
        imagined = Imagined(
            problem, model, lambda states: draft.spend(futures=states), old.states if old else ()
        )
        try:
            value, logits = imagined.begin()
            below = _choose_candidates(draft, imagined, logits, self.considered, old)
            legal = _looked_at(draft, imagined)
            found = (
                None
                if draft.faults
                else self._search(draft, imagined.root(value), imagined, legal, below)
            )
        except (ModelFailed, UserError) as error:
            draft.fail(f"the model failed: {error}")
            return draft.plan()
        if found is not None:
            self._rank(draft, imagined, found)
        return draft.plan(
            memory=_Memory(tree=found.tree, imagined=imagined) if self.reuse and found else None
        )

    def _search(
        self,
        draft: PlanBuilder,
        root: Root,
        model: Recurrent,
        legal: NDArray[np.bool_],
        below: Tree | None,
    ) -> Searched:
        simulations = int(min(self.simulations, draft.futures_left))
        draft.exhausted = draft.exhausted or simulations < self.simulations
        gumbel = Gumbel(considered=self.considered, gumbel_scale=self.gumbel_scale)
        puct = PUCT(noise=self.noise, untried="node")
        return search(
            root,
            model,
            rule=gumbel if self.variant == "gumbel" else puct,
            simulations=simulations,
            generator=draft.problem.generator,
            legal=legal[None],
            depth=min(self.depth, draft.problem.decisions_left),
            discount=self.discount,
            below=below,
            stop=lambda: draft.over,
        )

    def _rank(self, draft: PlanBuilder, imagined: Imagined, found: Searched) -> None:
        """Of each candidate list the best sequence that begins with it, scored against doing nothing."""
        returns = _returns(found.tree, self.discount)
        idle = found.tree.children[0, 0, 0]
        nothing = returns[max(idle, 0)]  # where it was not tried: the value of the run as it is
        best: dict[Intervention, tuple[float, Path]] = {}
        for node in np.argsort(-returns, kind="stable")[: np.count_nonzero(returns > -np.inf)]:
            path = imagined.path(found.tree, int(node))
            if not all(one.does_nothing for one in path):
                best.setdefault(path[0], (float(nothing - returns[node]), path))
        every = self.rank_by == "forecast"
        shown = [path for _, path in best.values() if len(path) <= FORECAST_DECISIONS]
        if not every:
            shown = shown[
                : int(max(0, min(self.forecasts, draft.futures_left - 1)))
            ]  # one more is for doing nothing
        if shown:
            draft.forecast(shown)
        if not (every and draft.forecast_of(NOTHING)):
            draft.score(NOTHING, 0.0)
            for score, path in best.values():
                draft.score(path, score)


def _returns(tree: Tree, discount: float) -> NDArray[np.float64]:
    """What the model says of the sequence that leads to each node, [N]: its rewards, and the value where it ends."""
    returns = np.full(tree.parents.shape[1], -np.inf)
    so_far = np.zeros(tree.parents.shape[1])
    returns[0] = tree.raw_values[0, 0]
    for node in np.flatnonzero(tree.parents[0] >= 0):  # parents come first
        above = tree.parents[0, node]
        weight = discount ** (tree.depths[0, node] - 1)
        so_far[node] = so_far[above] + weight * tree.rewards[0, node]
        returns[node] = so_far[node] + discount * weight * tree.raw_values[0, node]
    return returns


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """What a plan remembers for the next one."""

    tree: Tree
    imagined: Imagined


@dataclass(frozen=True, kw_only=True)
class _LeftOver:
    """What of a memory still holds: the tree below what was done, its states, and the candidates [A, parts] it is over."""

    tree: Tree
    states: list[State]
    vectors: NDArray[np.int64]


def _left_over(problem: PlanningProblem, considered: int) -> _LeftOver | None:
    """What of the previous plan's tree is below the intervention that was taken; None where there is nothing of use."""
    memory = problem.previous.memory if problem.previous else None
    if not isinstance(memory, _Memory) or problem.taken not in memory.imagined.interventions:
        return None
    column = memory.imagined.interventions.index(problem.taken)
    vectors = memory.imagined.vectors
    if memory.tree.children[0, 0, column] < 0 or len(vectors) != min(
        considered, count(problem.masks)
    ):
        return None
    tree = subtree(memory.tree, np.array([column]))
    states = [memory.imagined.states[place] for place in tree.latent[0, :, 0]]
    return _LeftOver(
        tree=replace(tree, latent=np.arange(len(states))[None, :, None]),
        states=[(latent, logits, path[1:]) for latent, logits, path in states],
        vectors=vectors,
    )


def _choose_candidates(
    draft: PlanBuilder, imagined: Imagined, logits: Floats, considered: int, old: _LeftOver | None
) -> Tree | None:
    """Sample candidates, number 0 doing nothing; where a tree is left over, only for those that it never tried."""
    if old is None:
        nothing = np.zeros((1, len(draft.problem.codec.sizes)), dtype=np.int64)
        imagined.choose(np.concatenate([nothing, _sampled(draft, logits, considered - 1, nothing)]))
        return None
    free = ~old.tree.visits[0].any(axis=0)
    free[0] = False
    fresh = _sampled(draft, logits, int(free.sum()), old.vectors[~free])
    vectors = old.vectors.copy()
    vectors[np.flatnonzero(free)[: len(fresh)]] = fresh
    imagined.choose(vectors)
    return replace(old.tree, logits=imagined.policy(range(len(old.states)))[None])


def _sampled(
    draft: PlanBuilder, logits: Floats, wanted: int, known: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Legal action vectors [≤ wanted, parts] besides the known ones: those that are proposed, then by the policy.

    Drawn one after the other without replacement, which is taking the highest of logits plus Gumbel
    noise (Kool et al. 2019).
    """
    codec = draft.problem.codec
    legal = exhaustive(draft.problem.masks)
    firsts = np.concatenate([[0], np.cumsum(codec.sizes)[:-1]])
    score = logits[legal + firsts].sum(axis=1) + draft.problem.generator.gumbel(size=len(legal))
    places = {vector.tobytes(): place for place, vector in enumerate(legal)}
    proposed = [codec.encode(one).tobytes() for sequence in draft.proposals for one in sequence]
    for rank, vector in enumerate(dict.fromkeys(proposed)):
        if vector in places:
            score[places[vector]] = np.finfo(np.float64).max / (1 + rank)
    score[[places[vector.tobytes()] for vector in known if vector.tobytes() in places]] = -np.inf
    order = np.argsort(-score, kind="stable")[:wanted]
    sampled: NDArray[np.int64] = legal[order[score[order] > -np.inf]]
    return sampled


def _looked_at(draft: PlanBuilder, imagined: Imagined) -> NDArray[np.bool_]:
    """Which candidates are legal now and not pruned, [A]."""
    legal = imagined.allowed(())
    kept = set(
        draft.kept(
            [(one,) for one, allowed in zip(imagined.interventions[1:], legal[1:]) if allowed]
        )
    )
    return np.array(
        [place == 0 or (one,) in kept for place, one in enumerate(imagined.interventions)]
    )
