"""Gumbel MuZero (Danihelka, Guez, Schrittwieser & Silver 2022, "Policy improvement by planning with Gumbel").

    root        sequential halving over the `considered` actions with the highest g + logits, scored
    by g + logits + σ(q̂) below       argmax of softmax(logits + σ(q̂)) − N / (1 + ΣN) σ(q̂)
    (visit_offset + max N)·value_scale · (q̂ − min q̂)/(max q̂ − min q̂) q̂           q where an
    action was tried, else v_mix = (v + ΣN · Σ_tried π·q / Σ_tried π) / (1 + ΣN) target
    softmax(logits + σ(q̂))

with g standard Gumbel noise × `gumbel_scale`; at 0 the search is deterministic. The action taken is
the one that came through the halving with the best score.

An inner node's choice depends on its own statistics alone. So it is made once, when these change,
for all nodes that a simulation passed in one go, and the way down is a chain of look-ups.

Deviations: illegal actions of the root stand outside of min q̂ and max q̂, as if they did not exist
(mctx counts their v_mix in). In a tree that is gone on from the halving counts the visits of this
search alone, while q̂ and max N know all of them. Policy probabilities have a floor of 1e-30.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trainenv.planners.search.gumbel_single import LEAST_RANGE, GumbelPicker
from trainenv.planners.search.halving import schedule
from trainenv.planners.search.node_arrays import Nodes
from trainenv.planners.search.rules import Bools, Chooser, Floats, Ints, Picker, Verdicts
from trainenv.planners.search.single_tree import LoneTree
from trainenv.types import UserError


@dataclass(frozen=True, kw_only=True)
class Gumbel:
    """The rule; see the module.

    Args:
        considered: m, actions sampled at the root.
        gumbel_scale: 1 to explore, 0 to evaluate.
        visit_offset: c_visit.
        value_scale: c_scale.

    Raises:
        UserError: a setting is out of range.
    """

    considered: int = 16
    gumbel_scale: float = 1.0
    visit_offset: float = 50.0
    value_scale: float = 0.1

    def __post_init__(self) -> None:
        if self.considered < 1:
            raise UserError(f"considered must be at least 1 action, found {self.considered!r}")
        for name in ("gumbel_scale", "visit_offset", "value_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"{name} must be a finite number from 0 on, found {getattr(self, name)!r}"
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
        """Sample the noise and choose the first actions; see `Rule`."""
        logits = nodes.logits[nodes.roots]
        allowed = np.ones(logits.shape, dtype=np.bool_) if legal is None else legal
        noise = self.gumbel_scale * generator.gumbel(size=logits.shape)
        counts = np.minimum(allowed.sum(axis=1), self.considered)
        return _GumbelChooser(
            rule=self,
            nodes=nodes,
            base=np.where(allowed, noise + logits, -np.inf).T.copy(),
            illegal=None if legal is None or legal.all() else ~legal.T.copy(),
            schedule=schedule(counts, simulations),
        )


class _GumbelChooser:
    """One search, by columns: base [A, B] = g + logits, −inf where illegal; before [A, B] visits by an earlier search."""

    def __init__(
        self, *, rule: Gumbel, nodes: Nodes, base: Floats, illegal: Bools | None, schedule: Ints
    ) -> None:
        self.rule = rule
        self.nodes = nodes
        self.base = base
        self.illegal = illegal
        self.before = nodes.visits[nodes.roots].T.copy()
        self.schedule = schedule  # [simulations, B]
        self._turns = iter(schedule)
        self._root_edges = nodes.roots * len(base)
        self._ones = np.ones(len(base))
        if nodes.used > 1:
            self._choose_in_old_trees()
        with np.errstate(all="ignore"):  # 0/0 at roots where nothing was tried yet
            _, scaled, _, total = self._scaled(nodes.roots, illegal)
        self._choose_at_roots(np.where(total > 0, scaled, 0.0), self.before)

    def before_step(self, rows: Ints, /) -> None:
        """All has been chosen."""

    def after_backup(self, rows: Ints, /) -> None:
        """Choose anew where statistics changed."""
        roots = self.nodes.batch
        _, scaled, facts, total = self._scaled(rows, self.illegal)
        self._choose_at_roots(scaled[:, :roots], facts[0, :, :roots])
        if len(rows) > roots:
            self._choose_below(rows[roots:], scaled[:, roots:], facts[:, :, roots:], total[roots:])

    def alone(self, tree: LoneTree, /) -> Picker:
        """The same on Python numbers."""
        base = self.base[:, 0].tolist()
        turns = self.schedule[:, 0].tolist()
        return GumbelPicker(
            tree, base, turns, offset=self.rule.visit_offset, scale=self.rule.value_scale
        )

    def conclude(self) -> Verdicts:
        """The halving's survivors first, by score; see `Verdicts`."""
        completed, scaled, (visits, _, priors), _ = self._scaled(self.nodes.roots, self.illegal)
        ranking = np.lexsort((-(self.base + scaled), self.before - visits), axis=0).T.copy()
        weights = priors * np.exp(scaled)
        if self.illegal is not None:
            weights[self.illegal] = 0.0
        policy = (weights / weights.sum(axis=0)).T.copy()
        return Verdicts(
            action=ranking[:, 0].copy(), ranking=ranking, policy=policy, q=completed.T.copy()
        )

    def _scaled(self, rows: Ints, illegal: Bools | None) -> tuple[Floats, Floats, Floats, Floats]:
        """Of each row: q̂ [A, R], σ(q̂) − max σ(q̂) [A, R], its facts [3, A, R], ΣN [R].

        With the maximum taken off no exponential overflows. `illegal` [A, B] is that of the roots:
        the rows then begin with them.
        """
        facts = self.nodes.columns(rows)
        visits, q, priors = facts
        tried = np.minimum(visits, 1.0)  # 1 or 0
        total = self._ones.dot(visits)
        mean = self._ones.dot(priors * q)
        mean /= self._ones.dot(priors * tried)
        mixed = total * mean
        mixed += self.nodes.values.take(rows)
        mixed /= total + 1.0
        completed = np.subtract(1.0, tried, out=tried)
        completed *= mixed
        completed += q
        if (
            illegal is not None
        ):  # shall not count: the mean of what was tried lies between the least and the greatest
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
        score = scaled + self.base
        np.putmask(score, visits != self.before + next(self._turns), -np.inf)
        self.nodes.point(self.nodes.roots, self._root_edges + score.argmax(0))

    def _choose_below(self, rows: Ints, scaled: Floats, facts: Floats, total: Floats) -> None:
        visits, _, priors = facts
        score = np.exp(scaled)
        score *= priors
        score /= self._ones.dot(
            score
        )  # softmax(logits + σ(q̂)); the sum is above 0: scaled is 0 where q̂ is highest
        score -= visits / (total + 1.0)
        self.nodes.point(rows, rows * len(score) + score.argmax(0))

    def _choose_in_old_trees(self) -> None:
        passed = np.flatnonzero(self.nodes.visits.any(axis=1))
        rows = np.setdiff1d(passed, self.nodes.roots)
        if len(rows):
            _, scaled, facts, total = self._scaled(rows, None)
            self._choose_below(rows, scaled, facts, total)
