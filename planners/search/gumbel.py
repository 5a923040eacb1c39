"""Gumbel MuZero (Danihelka, Guez, Schrittwieser & Silver 2022).

"Policy improvement by planning with Gumbel":

    root     sequential halving over the `considered` actions with the highest g + logits,
             scored by g + logits + σ(q̂)
    below    argmax of softmax(logits + σ(q̂)) − N / (1 + ΣN)
    σ(q̂)     (visit_offset + max N)·value_scale · (q̂ − min q̂)/(max q̂ − min q̂)
    q̂        q where an action was tried, otherwise
             v_mix = (v + ΣN · Σ_tried π·q / Σ_tried π) / (1 + ΣN)
    target   softmax(logits + σ(q̂))

with g standard Gumbel noise × `gumbel_scale`; at 0 the search is deterministic. The action taken is
the survivor of the halving with the best score.

The choice at an inner node depends on the statistics of that node alone. So it is made once, when
they change, for all nodes that a simulation passed; the way down is then a chain of look-ups.

Deviations:
- Illegal actions of the root do not count in min q̂ and max q̂ (mctx counts their v_mix).
- In a reused tree the halving counts the visits of this search alone; q̂ and max N use all visits.
- Policy probabilities are at least 1e-30.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainenv.planners.search.contract import Bools, Floats, Ints, PolicyOutput
from trainenv.planners.search.gumbel_single import GumbelPicker
from trainenv.planners.search.halving import schedule
from trainenv.planners.search.node_arrays import LEAST_RANGE, Nodes
from trainenv.planners.search.rules import Chooser
from trainenv.planners.search.single_tree import Picker, SingleTree
from trainenv.tools.checks import number, whole


@dataclass(frozen=True, kw_only=True)
class Gumbel:
    """The rule of Gumbel MuZero; the module has the formulas.

    Args:
        considered: Number of actions sampled at the root, m.
        gumbel_scale: Factor on the Gumbel noise: 1 to explore, 0 to evaluate.
        visit_offset: Offset of the visits in σ, c_visit.
        value_scale: Factor on q̂ in σ, c_scale.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    considered: int = 16
    gumbel_scale: float = 1.0
    visit_offset: float = 50.0
    value_scale: float = 0.1

    def __post_init__(self) -> None:
        whole("considered", self.considered, least=1)
        for name in ("gumbel_scale", "visit_offset", "value_scale"):
            number(name, getattr(self, name), least=0)

    def begin(
        self,
        nodes: Nodes,
        /,
        *,
        legal: Bools | None,
        simulations: int,
        generator: np.random.Generator,
    ) -> Chooser:
        """Sample the noise and choose the first actions; see `Rule`."""
        logits = nodes.logits[nodes.roots]  # [B, A]
        noise = self.gumbel_scale * generator.gumbel(size=logits.shape)
        allowed = legal
        if allowed is None:
            allowed = np.ones(logits.shape, dtype=np.bool_)
        illegal = None if allowed.all() else ~allowed.T.copy()
        counts = np.minimum(allowed.sum(axis=1), self.considered)  # [B]
        return _GumbelChooser(
            rule=self,
            nodes=nodes,
            base=np.where(allowed, noise + logits, -np.inf).T.copy(),
            illegal=illegal,
            schedule=schedule(counts, simulations),
        )


class _GumbelChooser:
    """One search, in columns.

    Attributes:
        base: Scores g + logits, [A, B]; −inf for illegal actions.
        illegal: Illegal actions of the roots, [A, B]; None if all are legal.
        before: Visits by an earlier search, [A, B].
        schedule: Visits that an action must have to be chosen, [simulations, B].
    """

    def __init__(
        self, *, rule: Gumbel, nodes: Nodes, base: Floats, illegal: Bools | None, schedule: Ints
    ) -> None:
        self.rule = rule
        self.nodes = nodes
        self.base = base
        self.illegal = illegal
        self.before = nodes.visits[nodes.roots].T.copy()
        self.schedule = schedule
        self._turns = iter(schedule)
        self._root_edges = nodes.roots * len(base)
        self._ones = np.ones(len(base))
        if nodes.used > 1:
            self._choose_in_old_trees()
        with np.errstate(all="ignore"):  # 0/0 at roots where nothing has been tried
            _, scaled, _, total = self._scaled(nodes.roots, illegal)
        self._choose_at_roots(np.where(total > 0, scaled, 0.0), self.before)

    def before_step(self, rows: Ints, /) -> None:
        """Do nothing: all choices are made already."""

    def after_backup(self, rows: Ints, /) -> None:
        """Choose again in the rows whose statistics changed."""
        roots = self.nodes.batch
        _, scaled, facts, total = self._scaled(rows, self.illegal)
        self._choose_at_roots(scaled[:, :roots], facts[0, :, :roots])
        if len(rows) > roots:
            self._choose_below(rows[roots:], scaled[:, roots:], facts[:, :, roots:], total[roots:])

    def picker(self, tree: SingleTree, /) -> Picker:
        """Return the same choices on Python numbers."""
        base = self.base[:, 0].tolist()
        turns = self.schedule[:, 0].tolist()
        return GumbelPicker(
            tree, base, turns, offset=self.rule.visit_offset, scale=self.rule.value_scale
        )

    def conclude(self) -> PolicyOutput:
        """Rank the survivors of the halving first, by score."""
        completed, scaled, (visits, _, priors), _ = self._scaled(self.nodes.roots, self.illegal)
        ranking = np.lexsort((-(self.base + scaled), self.before - visits), axis=0).T.copy()
        weights = priors * np.exp(scaled)  # [A, B]
        if self.illegal is not None:
            weights[self.illegal] = 0.0
        policy = (weights / weights.sum(axis=0)).T.copy()
        return PolicyOutput(
            action=ranking[:, 0].copy(), ranking=ranking, policy=policy, q=completed.T.copy()
        )

    def _scaled(self, rows: Ints, illegal: Bools | None) -> tuple[Floats, Floats, Floats, Floats]:
        """Compute q̂ and σ(q̂) of some rows.

        The maximum is taken off σ(q̂), so that no exponential overflows.

        Args:
            rows: Rows of nodes, [R].
            illegal: Illegal actions of the roots, [A, B], if the rows begin with the roots.

        Returns:
            q̂ [A, R], σ(q̂) − max σ(q̂) [A, R], the facts of the rows [3, A, R], and ΣN [R].
        """
        facts = self.nodes.columns(rows)
        visits, q, priors = facts
        tried = np.minimum(visits, 1.0)  # [A, R] 1 or 0
        total = self._ones.dot(visits)  # [R]
        mean = self._ones.dot(priors * q)
        mean /= self._ones.dot(priors * tried)
        mixed = total * mean
        mixed += self.nodes.values.take(rows)
        mixed /= total + 1.0  # [R] v_mix
        completed = np.subtract(1.0, tried, out=tried)
        completed *= mixed
        completed += q  # [A, R]
        if illegal is not None:
            # The mean over tried actions lies between min q̂ and max q̂, so it changes neither.
            np.copyto(completed[:, : illegal.shape[1]], mean[: illegal.shape[1]], where=illegal)
        highest = np.maximum.reduce(completed, 0)
        width = highest - np.minimum.reduce(completed, 0)
        scale = np.maximum.reduce(visits, 0)
        scale += self.rule.visit_offset
        scale *= self.rule.value_scale
        scale /= np.maximum(width, LEAST_RANGE, out=width)
        scaled = completed - highest
        scaled *= scale
        return completed, scaled, facts, total

    def _choose_at_roots(self, scaled: Floats, visits: Floats) -> None:
        score = scaled + self.base  # [A, B]
        np.putmask(score, visits != self.before + next(self._turns), -np.inf)
        self.nodes.point(self.nodes.roots, self._root_edges + score.argmax(0))

    def _choose_below(self, rows: Ints, scaled: Floats, facts: Floats, total: Floats) -> None:
        visits, _, priors = facts
        score = np.exp(scaled)  # [A, R]
        score *= priors
        # softmax(logits + σ(q̂)); the sum is above 0, because `scaled` is 0 where q̂ is highest
        score /= self._ones.dot(score)
        score -= visits / (total + 1.0)
        self.nodes.point(rows, rows * len(score) + score.argmax(0))

    def _choose_in_old_trees(self) -> None:
        passed = np.flatnonzero(self.nodes.visits.any(axis=1))
        rows = np.setdiff1d(passed, self.nodes.roots)
        if len(rows):
            _, scaled, facts, total = self._scaled(rows, None)
            self._choose_below(rows, scaled, facts, total)
