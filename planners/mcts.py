"""Monte Carlo tree search over sequences of interventions, in the world model.

MuZero (Schrittwieser et al. 2020) with sampled actions:

    1.  the model's state of the run now, its value and its policy          1 inference
    2.  `considered` candidates, sampled from the policy without
        replacement; doing nothing is one of them
    3.  a search over sequences of candidates, `depth` decisions deep       1 inference a simulation
    4.  the best sequence found below each candidate, ranked                1 forecast each, of some

The variant `gumbel` (default) is Gumbel MuZero (Danihelka et al. 2022), `puct` is that of MuZero;
`trainenv.planners.search` has the formulas. Sampling the actions to search over is Sampled MuZero
(Hubert et al. 2021); here one sample serves all nodes. Actions that later masks forbid
(`masks_after`) are not chosen there.

The model is deterministic, so a sequence has one return: its rewards and the value where it ends,
that is, the fall of ln loss until the end of the run, with the risk of divergence priced in. The
score of a sequence is the return of doing nothing now less its own. It is not the mean over all
sequences tried below a candidate, because that includes the failures of exploration; means only
guide the search.

So scores refer to the end of the run, whatever the criterion of the problem. The criterion is
visible in the forecasts, which the best `forecasts` sequences get if the budget covers them. With
`rank_by="forecast"` all sequences found are forecast and ranked by the criterion. The single
interventions of `problem.proposals` are candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.search import (
    PUCT,
    Gumbel,
    Recurrent,
    Root,
    SearchResult,
    Tree,
    search,
    subtree,
)
from trainenv.planners.search.contract import Floats
from trainenv.planners.search.model_states import ModelFailed, ModelStates, State
from trainenv.planners.search.rules import Rule
from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.sequences import NOTHING, Interventions, count, exhaustive
from trainenv.tools.checks import choice, number, whole
from trainenv.types import DECISIONS, Intervention, Plan, PlanningProblem, UserError

Variant = Literal["gumbel", "puct"]
RankedBy = Literal["search", "forecast"]


@dataclass(frozen=True, kw_only=True)
class MCTS:
    """Search sequences of interventions in the model.

    Args:
        variant: Rule of the search: `gumbel` or `puct`.
        simulations: Number of inferences after the first one.
        considered: Number of candidates, doing nothing included; at least 2.
        depth: Most decisions of a sequence, fewer at the end of the run. Sequences of more than
            four are not forecast.
        discount: Weight of a return one decision later; 1 for runs of a fixed length.
        gumbel_scale: Factor on the noise at the root of `gumbel`; 0 decides without noise.
        noise: Share of Dirichlet noise at the root of `puct`.
        forecasts: Number of the best sequences that are forecast in addition.
        rank_by: Source of the scores: `search` or `forecast`; see the module.
        reuse: Continue from the tree of `problem.previous` below the intervention taken since. Old
            returns then count as much as new ones, although they are not from the run as it became:
            useful where the model predicts the effect of decisions well.

    Raises:
        UserError: A hyperparameter is out of range.
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
        if self.rank_by == "forecast" and self.depth > DECISIONS:
            raise UserError(
                f"depth must be at most {DECISIONS} with rank_by='forecast', found {self.depth}; "
                f"a model forecasts {DECISIONS} decisions, so lower it or rank by search"
            )
        number("discount", self.discount, above=0.0, most=1.0)
        number("gumbel_scale", self.gumbel_scale, least=0.0)
        number("noise", self.noise, least=0.0, most=1.0)

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Search, and rank the sequences found."""
        builder = PlanBuilder(problem, "mcts")
        model = builder.model
        if count(problem.masks) == 1:
            return builder.plan()
        if builder.over or builder.futures_left < 2:
            builder.exhausted = True
            return builder.plan()
        old: _Reusable | None = None
        known: list[State] = []
        if self.reuse and (old := _reusable(problem, self.considered)):
            known = old.states
        states = ModelStates(problem, model, lambda count: builder.spend(futures=count), known)
        try:
            value, logits = states.begin()
            below = _choose_candidates(builder, states, logits, self.considered, old)
            legal = _searchable(builder, states)
            if builder.faults:
                return builder.plan()
            found = self._search(builder, states.root(value), states, legal, below)
        except (ModelFailed, UserError) as error:
            builder.fail(f"the model failed: {error}")
            return builder.plan()
        self._rank(builder, states, found)
        if not self.reuse:
            return builder.plan()
        return builder.plan(memory=_Memory(tree=found.tree, states=states))

    def _search(
        self,
        builder: PlanBuilder,
        root: Root,
        model: Recurrent,
        legal: NDArray[np.bool_],
        below: Tree | None,
    ) -> SearchResult:
        """Search from the run as it is, as far as the budget goes."""
        simulations = int(min(self.simulations, builder.futures_left))
        builder.exhausted = builder.exhausted or simulations < self.simulations
        rule: Rule = Gumbel(considered=self.considered, gumbel_scale=self.gumbel_scale)
        if self.variant == "puct":
            rule = PUCT(noise=self.noise, untried="node")
        return search(
            root,
            model,
            rule=rule,
            simulations=simulations,
            generator=builder.problem.generator,
            legal=legal[None],
            depth=min(self.depth, builder.problem.decisions_left),
            discount=self.discount,
            below=below,
            stop=lambda: builder.over,
        )

    def _rank(self, builder: PlanBuilder, states: ModelStates, found: SearchResult) -> None:
        """Rank the best sequence below each candidate by its return against doing nothing."""
        returns = _returns(found.tree, self.discount)
        idle = found.tree.children[0, 0, 0]
        nothing = returns[max(idle, 0)]  # if it was not tried: the value of the run as it is
        best: dict[Intervention, tuple[float, Interventions]] = {}
        for node in np.argsort(-returns, kind="stable")[: np.count_nonzero(returns > -np.inf)]:
            path = states.path(found.tree, int(node))
            if not all(one.does_nothing for one in path):
                best.setdefault(path[0], (float(nothing - returns[node]), path))
        forecast_all = self.rank_by == "forecast"
        shown = [path for _, path in best.values() if len(path) <= DECISIONS]
        if not forecast_all:
            # One future is left for the forecast of doing nothing.
            shown = shown[: int(max(0, min(self.forecasts, builder.futures_left - 1)))]
        if shown:
            builder.forecast(shown)
        if not (forecast_all and builder.forecast_of(NOTHING)):
            builder.score(NOTHING, 0.0)
            for score, path in best.values():
                builder.score(path, score)


def _returns(tree: Tree, discount: float) -> NDArray[np.float64]:
    """Return the model's return of the sequence that leads to each node, [N]; −inf for holes.

    It is the sum of the rewards on the way and the value of the node.
    """
    returns = np.full(tree.parents.shape[1], -np.inf)
    so_far = np.zeros(tree.parents.shape[1])
    returns[0] = tree.raw_values[0, 0]
    for node in np.flatnonzero(tree.parents[0] >= 0):  # parents come before their children
        above = tree.parents[0, node]
        weight = discount ** (tree.depths[0, node] - 1)
        so_far[node] = so_far[above] + weight * tree.rewards[0, node]
        returns[node] = so_far[node] + discount * weight * tree.raw_values[0, node]
    return returns


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """The part of a search that the next plan may continue.

    Attributes:
        tree: Tree of the search.
        states: States of its nodes.
    """

    tree: Tree
    states: ModelStates


@dataclass(frozen=True, kw_only=True)
class _Reusable:
    """The part of a memory that is still valid.

    Attributes:
        tree: Tree below the intervention taken.
        states: States of its nodes.
        vectors: Action vectors of its candidates, [A, parts].
    """

    tree: Tree
    states: list[State]
    vectors: NDArray[np.int64]


def _reusable(problem: PlanningProblem, considered: int) -> _Reusable | None:
    """Return the previous plan's tree below the intervention taken; None if it is of no use."""
    if problem.previous is None:
        return None
    memory = problem.previous.memory
    if not isinstance(memory, _Memory) or problem.taken not in memory.states.interventions:
        return None
    column = memory.states.interventions.index(problem.taken)
    vectors = memory.states.vectors
    tried = memory.tree.children[0, 0, column] >= 0
    if not tried or len(vectors) != min(considered, count(problem.masks)):
        return None
    tree = subtree(memory.tree, np.array([column]))
    states = [memory.states.states[place] for place in tree.latent[0, :, 0]]
    return _Reusable(
        tree=replace(tree, latent=np.arange(len(states))[None, :, None]),
        states=[(latent, logits, path[1:]) for latent, logits, path in states],
        vectors=vectors,
    )


def _choose_candidates(
    builder: PlanBuilder,
    states: ModelStates,
    logits: Floats,
    considered: int,
    old: _Reusable | None,
) -> Tree | None:
    """Sample the candidates; number 0 does nothing.

    With an old tree, only the candidates that it never tried are sampled anew.

    Args:
        builder: Builder of the plan.
        states: States that get the candidates.
        logits: Policy logits of the run as it is, [L].
        considered: Number of candidates.
        old: Old tree to continue from; None to begin anew.

    Returns:
        The old tree with the policy of the new candidates; None without an old tree.
    """
    if old is None:
        nothing = np.zeros((1, len(builder.problem.codec.sizes)), dtype=np.int64)
        sampled = _sample(builder, logits, considered - 1, nothing)
        states.choose(np.concatenate([nothing, sampled]))
        return None
    free = ~old.tree.visits[0].any(axis=0)  # [A]
    free[0] = False
    fresh = _sample(builder, logits, int(free.sum()), old.vectors[~free])
    vectors = old.vectors.copy()
    vectors[np.flatnonzero(free)[: len(fresh)]] = fresh
    states.choose(vectors)
    return replace(old.tree, logits=states.policy(range(len(old.states)))[None])


def _sample(
    builder: PlanBuilder, logits: Floats, wanted: int, known: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Sample legal action vectors from the policy without replacement; proposals come first.

    Taking the greatest logits plus Gumbel noise is sampling without replacement (Kool et al. 2019).

    Args:
        builder: Builder of the plan.
        logits: Policy logits, [L].
        wanted: Number of vectors.
        known: Vectors that must not be sampled, [n, parts].

    Returns:
        Action vectors, [≤ wanted, parts].
    """
    codec = builder.problem.codec
    legal = exhaustive(builder.problem.masks)  # [n, parts]
    firsts = np.concatenate([[0], np.cumsum(codec.sizes)[:-1]])
    score = logits[legal + firsts].sum(axis=1) + builder.problem.generator.gumbel(size=len(legal))
    places = {vector.tobytes(): place for place, vector in enumerate(legal)}
    proposed = [codec.encode(one).tobytes() for sequence in builder.proposals for one in sequence]
    for rank, vector in enumerate(dict.fromkeys(proposed)):
        if vector in places:
            score[places[vector]] = np.finfo(np.float64).max / (1 + rank)
    score[[places[vector.tobytes()] for vector in known if vector.tobytes() in places]] = -np.inf
    order = np.argsort(-score, kind="stable")[:wanted]
    sampled: NDArray[np.int64] = legal[order[score[order] > -np.inf]]
    return sampled


def _searchable(builder: PlanBuilder, states: ModelStates) -> NDArray[np.bool_]:
    """Return the candidates that are legal now and not pruned, bool [A]; doing nothing is one."""
    allowed = states.allowed(())[1:]
    legal: list[Interventions] = [
        (one,) for one, sound in zip(states.interventions[1:], allowed) if sound
    ]
    kept = set(builder.unpruned(legal))
    return np.array([True, *((one,) in kept for one in states.interventions[1:])])
