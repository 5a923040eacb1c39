"""pUCT, as in MuZero (Schrittwieser et al. 2020, appendix B).

    argmax of  Q̂ + P·√N/(1 + n)·(c_init + ln((N + c_base + 1)/c_base))

with n the visits of the action, N those of its node (its own evaluation and all actions), and Q̂
the mean return, scaled by the lowest and the highest one seen anywhere in the tree so far. At the
root P is mixed with Dirichlet noise over the legal actions.

For untried actions Q̂ is 0, as in MuZero's pseudocode. With few simulations and a flat policy, the
first action that is no disaster is then the only one ever tried. `untried="node"` avoids that: Q̂
is the scaled mean of all returns of the node.

Deviations:
- Ties go to the lowest action.
- While all returns seen agree to 1e-8, Q̂ is 0 and not the unscaled return.
- Actions are ranked by visits, then by mean return, then by prior. With `temperature` T > 0 the
  action taken is drawn from visits^(1/T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from trainenv.planners.search.contract import Bools, Floats, Ints, PolicyOutput
from trainenv.planners.search.node_arrays import LEAST_RANGE, Nodes
from trainenv.planners.search.puct_single import PUCTPicker
from trainenv.planners.search.rules import Chooser
from trainenv.planners.search.single_tree import Picker, SingleTree
from trainenv.tools.checks import choice, number

Untried = Literal["lowest", "node"]


@dataclass(frozen=True, kw_only=True)
class PUCT:
    """The rule of MuZero; the module has the formula.

    Args:
        c_init: Weight of the prior.
        c_base: Visits at which that weight has grown by ln 2.
        noise: Share of Dirichlet noise at the root; 0 to evaluate.
        concentration: Parameter of the Dirichlet distribution, the same for each legal action.
        temperature: Temperature of the action taken; 0 takes the most visited action.
        untried: Q̂ of untried actions: `lowest` is 0, `node` the mean of all returns of their node
            and its own value, scaled like other returns and kept within 0 and 1.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    c_init: float = 1.25
    c_base: float = 19652.0
    noise: float = 0.25
    concentration: float = 0.3
    temperature: float = 0.0
    untried: Untried = "lowest"

    def __post_init__(self) -> None:
        number("c_init", self.c_init, least=0)
        number("c_base", self.c_base, above=0)
        number("noise", self.noise, least=0, most=1)
        number("concentration", self.concentration, above=0)
        number("temperature", self.temperature, least=0)
        choice("untried", self.untried, get_args(Untried))

    def begin(
        self,
        nodes: Nodes,
        /,
        *,
        legal: Bools | None,
        simulations: int,
        generator: np.random.Generator,
    ) -> Chooser:
        """Mix Dirichlet noise into the priors of the roots; see `Rule`."""
        priors = nodes.priors[nodes.roots]  # [B, A]
        allowed = legal
        if allowed is None:
            allowed = np.ones(priors.shape, dtype=np.bool_)
        priors = np.where(allowed, priors, 0.0)
        priors /= priors.sum(axis=1, keepdims=True)
        # Normalised gamma variates are Dirichlet variates, over any subset of actions too.
        drawn = generator.gamma(self.concentration, size=priors.shape)
        drawn = np.where(allowed, np.maximum(drawn, 1e-300), 0.0)
        drawn /= drawn.sum(axis=1, keepdims=True)
        nodes.priors[nodes.roots] = (1 - self.noise) * priors + self.noise * drawn
        return _PUCTChooser(rule=self, nodes=nodes, illegal=~allowed, generator=generator)


class _PUCTChooser:
    """One search.

    Attributes:
        illegal: Illegal actions of the roots, [B, A].
        lowest: Lowest return seen in each tree, [B].
        highest: Highest return seen in each tree, [B].
    """

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
        """Choose for one level of the paths under way.

        Each choice is made anew, because Q̂ of all nodes changes with the range of returns.
        """
        trees = rows.nonzero()[0]
        rows = rows.take(trees)
        visits, q, priors = self.nodes.columns(rows)  # [A, R]
        count = self._ones.dot(visits) + 1.0  # [R]
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
        """Extend the range of returns by those that a simulation found."""
        seen = self.nodes.facts.ravel().take(3 * self.nodes.edges.take(rows) + 1)
        trees = (rows - 1) // self.nodes.capacity
        np.minimum.at(self.lowest, trees, seen)
        np.maximum.at(self.highest, trees, seen)

    def picker(self, tree: SingleTree, /) -> Picker:
        """Return the same choices on Python numbers."""
        return PUCTPicker(
            tree,
            self.illegal[0].tolist(),
            c_init=self.rule.c_init,
            c_base=self.rule.c_base,
            by_node=self.rule.untried == "node",
        )

    def conclude(self) -> PolicyOutput:
        """Rank the actions, the most visited first."""
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
        return PolicyOutput(
            action=action,
            ranking=ranking,
            policy=visits / visits.sum(axis=1, keepdims=True),
            q=np.where(visits > 0, q, nodes.values[roots, None]),
        )

    def _scaled(self, visits: Floats, q: Floats, trees: Ints) -> Floats:
        """Return Q̂, [A, R]: (q − lowest)/(highest − lowest).

        It is 0 for untried actions, and everywhere while all returns are equal.
        """
        lowest = self.lowest.take(trees)
        width = self.highest.take(trees) - lowest  # −inf before any return was seen
        ranged = width > LEAST_RANGE
        scaled: Floats = (q - np.where(ranged, lowest, 0.0)) * np.where(ranged, 1.0 / width, 0.0)
        scaled *= np.minimum(visits, 1.0)
        return np.clip(scaled, 0.0, 1.0, out=scaled)
