"""Cross-entropy method over paths of the learning rate to the end of the run.

A path is a line through knots at fixed shares of what is left, in ln. Each round draws paths from a
Gaussian over the knots, values them, and fits the Gaussian to the best (Rubinstein 1999; de Boer et
al. 2005). The first round also has the shapes of `trainenv.planners.shapes`, so that the result is
never valued worse than the best of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.rate_paths import (
    FACTORS,
    LENGTHS,
    rank_paths,
    rate_limits,
    shapes_within,
    value_paths,
)
from trainenv.tools.checks import number, whole
from trainenv.types import Plan, PlanningProblem, UserError

_LEAST_SPREAD = 0.02  # of a knot, nats of ln rate: the search never collapses


@dataclass(frozen=True, kw_only=True)
class CEM:
    """Search for the best path.

    Args:
        candidates: Number of paths drawn in each round. With the defaults, all rounds and the
            shapes fit into the default budget of a plan.
        rounds: Number of rounds.
        elite: Number of the best paths that the Gaussian is fitted to.
        knots: Shares of what is left at which the line may bend, rising, above 0, the last 1.
        spread: Standard deviation of each knot in the first round, nats of ln rate.
        caution: Weight of the ensemble's disagreement in the score.
        kept: Largest number of paths on the plan.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    candidates: int = 21
    rounds: int = 3
    elite: int = 6
    knots: tuple[float, ...] = (0.1, 0.35, 0.7, 1.0)
    spread: float = 0.6
    caution: float = 1.0
    kept: int = 16

    def __post_init__(self) -> None:
        for name in ("candidates", "rounds", "elite", "kept"):
            whole(name, getattr(self, name), least=1)
        number("spread", self.spread, above=0)
        number("caution", self.caution, least=0)
        rising = all(a < b for a, b in zip((0.0, *self.knots), self.knots))
        if not self.knots or not rising or self.knots[-1] != 1.0:
            raise UserError(
                f"knots must rise from above 0 to 1, found {self.knots!r}; end them with 1.0"
            )

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Search, and rank the best paths found."""
        builder = PlanBuilder(problem, "cem")
        low, high = rate_limits(builder)
        left = problem.decisions_left
        paths = shapes_within(builder, FACTORS, LENGTHS)
        scores = value_paths(builder, paths, self.caution)
        centre = np.zeros(len(self.knots))
        spread = np.full(len(self.knots), self.spread)
        for _ in range(self.rounds):
            if builder.over or builder.exhausted:
                break
            drawn = centre + spread * problem.generator.standard_normal(
                (self.candidates, len(self.knots))
            )
            drawn = np.clip(drawn, low, high)
            fresh = self._lines(drawn, left)
            found = value_paths(builder, fresh, self.caution)
            paths = np.concatenate([paths, fresh])
            scores = np.concatenate([scores, found])
            if not np.isfinite(found).any():
                break
            best = drawn[np.argsort(found, kind="stable")[: self.elite]]
            centre = best.mean(axis=0)
            spread = np.maximum(best.std(axis=0), _LEAST_SPREAD)
        rank_paths(builder, paths, scores, self.kept)
        return builder.plan()

    def _lines(self, values: NDArray[np.float64], left: int) -> NDArray[np.float64]:
        """Return paths [K, L] through knots [K, N], from 0 now."""
        places = np.concatenate([[0.0], self.knots]) * left
        whole = np.arange(1, left + 1)
        at = np.clip(np.searchsorted(places, whole, side="left"), 1, len(self.knots))
        share = (whole - places[at - 1]) / (places[at] - places[at - 1])
        ends = np.concatenate([np.zeros((len(values), 1)), values], axis=1)
        lines: NDArray[np.float64] = ends[:, at - 1] * (1 - share) + ends[:, at] * share
        return lines
