"""pUCT as in MuZero (Schrittwieser et al. 2020, appendix B).

    argmax of  Q̂ + P·√N/(1 + n)·(c_init + ln((N + c_base + 1)/c_base))

with n the visits of the action, N those of its node (its own evaluation and all actions'), Q̂ the
mean return scaled by the lowest and the highest one that were seen anywhere in the tree so far. At
the root P is mixed with Dirichlet noise over the legal ones.

Of actions that were not tried Q̂ is 0, as in MuZero's pseudocode: with few simulations and a flat
policy the first action that is no disaster is then the only one ever tried. So there is
`untried="node"` beside it: the scaled mean of all returns of the node.

Deviations: ties go to the lowest action; as long as all returns seen agree to 1e-8, Q̂ is 0, not
the bare return. Actions are ranked by visits, equal ones by their mean return, then by prior; with
`temperature` T > 0 the action taken is drawn from visits^(1/T).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from trainenv.planners.search.node_arrays import Nodes
from trainenv.planners.search.puct_single import LEAST_RANGE, PUCTPicker
from trainenv.planners.search.rules import Bools, Chooser, Floats, Ints, Picker, Verdicts
from trainenv.planners.search.single_tree import LoneTree
from trainenv.types import UserError

Untried = Literal["lowest", "node"]


@dataclass(frozen=True, kw_only=True)
class PUCT:
    """The rule; see the module.

    Args:
        c_init: weight of the prior.
        c_base: visits at which that weight has grown by ln 2.
        noise: share of Dirichlet noise at the root; 0 to evaluate.
        concentration: of the Dirichlet distribution, the same for each legal action.
        temperature: 0 takes the most visited action.
        untried: Q̂ of actions that were not tried: `lowest` is 0, `node` the mean of all returns of
            their node, its own value included, scaled alike and kept within 0 and 1.

    Raises:
        UserError: a setting is out of range.
    """

    c_init: float = 1.25
    c_base: float = 19652.0
    noise: float = 0.25
    concentration: float = 0.3
    temperature: float = 0.0
    untried: Untried = "lowest"

    def __post_init__(self) -> None:
        for name in ("c_init", "temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"{name} must be a finite number from 0 on, found {getattr(self, name)!r}"
                )
        for name in ("c_base", "concentration"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(
                    f"{name} must be a finite number above 0, found {getattr(self, name)!r}"
                )
        if not 0 <= self.noise <= 1:
            raise UserError(f"noise must be a share from 0 to 1, found {self.noise!r}")
        if self.untried not in get_args(Untried):
            raise UserError(
                f"untried must be one of {', '.join(get_args(Untried))}, found {self.untried!r}"
            )

    def begin(
        self,
        nodes: Nodes,
        /,
        *,
        legal: Bools | None,
        simulations: int,
        generator: np.random.Generator,
    ) -> Chooser:
        """Mix the noise in; see `Rule`."""
        priors = nodes.priors[nodes.roots]
        allowed = np.ones(priors.shape, dtype=np.bool_) if legal is None else legal
        priors = np.where(allowed, priors, 0.0)
        priors /= priors.sum(axis=1, keepdims=True)
        drawn = generator.gamma(
            self.concentration, size=priors.shape
        )  # normalised gammas are Dirichlet, over any subset too
        drawn = np.where(allowed, np.maximum(drawn, 1e-300), 0.0)
        drawn /= drawn.sum(axis=1, keepdims=True)
        nodes.priors[nodes.roots] = (1 - self.noise) * priors + self.noise * drawn
        return _PUCTChooser(rule=self, nodes=nodes, illegal=~allowed, generator=generator)


class _PUCTChooser:
    """One search: lowest and highest [B] returns seen in each tree."""

    def __init__(
        self, *, rule: PUCT, nodes: Nodes, illegal: Bools, generator: np.random.Generator
    ) -> None:
        self.rule = rule
        self.nodes = nodes
        self.illegal = illegal
        self.generator = generator
        self._ones = np.ones(illegal.shape[1])
        by_tree = (nodes.batch, -1)
        seen = nodes.visits[1:].reshape(by_tree) > 0
        q = nodes.q[1:].reshape(by_tree)
        self.lowest = np.where(seen, q, np.inf).min(axis=1)
        self.highest = np.where(seen, q, -np.inf).max(axis=1)

    def before_step(self, rows: Ints, /) -> None:
        """Choose for one level of the paths that have not ended: Q̂ may have changed everywhere since it was last chosen."""
        trees = rows.nonzero()[0]
        rows = rows.take(trees)
        visits, q, priors = self.nodes.columns(rows)  # [A, R]
        count = self._ones.dot(visits) + 1.0
        weight = np.sqrt(count) * (
            self.rule.c_init + np.log((count + self.rule.c_base + 1.0) / self.rule.c_base)
        )
        score = priors * weight
        score /= visits + 1.0
        if self.rule.untried == "node":
            mean = (self.nodes.values.take(rows) + self._ones.dot(visits * q)) / count
            q = np.where(visits > 0, q, mean)
            visits = self._ones[:, None]
        score += self._scaled(visits, q, trees)
        if rows[0] == self.nodes.roots[0]:
            np.copyto(score, -np.inf, where=self.illegal.T)
        self.nodes.point(rows, rows * len(score) + score.argmax(0))

    def after_backup(self, rows: Ints, /) -> None:
        """Widen the range by what was seen."""
        seen = self.nodes.facts.ravel().take(3 * self.nodes.edges.take(rows) + 1)
        trees = (rows - 1) // self.nodes.capacity
        np.minimum.at(self.lowest, trees, seen)
        np.maximum.at(self.highest, trees, seen)

    def alone(self, tree: LoneTree, /) -> Picker:
        """The same on Python numbers."""
        return PUCTPicker(
            tree,
            self.illegal[0].tolist(),
            c_init=self.rule.c_init,
            c_base=self.rule.c_base,
            by_node=self.rule.untried == "node",
        )

    def conclude(self) -> Verdicts:
        """The most visited first; see `Verdicts`."""
        nodes = self.nodes
        roots = self.nodes.roots
        visits = nodes.visits[roots]
        q = nodes.q[roots]
        priors = nodes.priors[roots]
        ranking = np.lexsort((-priors, -q, -visits, self.illegal), axis=1)
        action = ranking[:, 0].copy()
        if self.rule.temperature > 0:
            with np.errstate(divide="ignore"):
                sharpened = np.log(visits) / self.rule.temperature  # −inf without visits
            action = (sharpened + self.generator.gumbel(size=visits.shape)).argmax(axis=1)
        return Verdicts(
            action=action,
            ranking=ranking,
            policy=visits / visits.sum(axis=1, keepdims=True),
            q=np.where(visits > 0, q, nodes.values[roots, None]),
        )

    def _scaled(self, visits: Floats, q: Floats, trees: Ints) -> Floats:
        """Q̂, [A, R]: (q − lowest)/(highest − lowest) where an action was tried and returns differ, else 0."""
        lowest = self.lowest.take(trees)
        width = self.highest.take(trees) - lowest  # −inf as long as nothing was seen
        ranged = width > LEAST_RANGE
        scaled: Floats = (q - np.where(ranged, lowest, 0.0)) * np.where(ranged, 1.0 / width, 0.0)
        scaled *= np.minimum(visits, 1.0)
        return np.clip(scaled, 0.0, 1.0, out=scaled)
