"""Shapes: value a fixed list of paths of the learning rate to the end of the run.

The list has jumps and ramps of several lengths to levels below and above the rate now. Planned anew
at every decision (receding horizon), their beginnings make up paths that the list does not have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.rate_paths import (
    FACTORS,
    LENGTHS,
    rank_paths,
    shapes_within,
    value_paths,
)
from trainenv.tools.checks import number, whole
from trainenv.types import Plan, PlanningProblem, UserError


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Rank a fixed list of paths.

    Args:
        factors: Levels, as factors on the rate now, each above 0.
        lengths: Lengths of the ramps, as shares of what is left, from 0 to 1; 0 is a jump.
        caution: Weight of the ensemble's disagreement in the score.
        kept: Largest number of paths on the plan.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    factors: tuple[float, ...] = FACTORS
    lengths: tuple[float, ...] = LENGTHS
    caution: float = 1.0
    kept: int = 16

    def __post_init__(self) -> None:
        for name, values, most in (
            ("factors", self.factors, math.inf),
            ("lengths", self.lengths, 1),
        ):
            if not values or not all(0 <= value <= most for value in values):
                raise UserError(
                    f"{name} must be numbers from 0 to {most:g}, at least one, found {values!r}"
                )
        if not all(0 < factor < math.inf for factor in self.factors):
            raise UserError(f"factors must be finite and above 0, found {self.factors!r}")
        number("caution", self.caution, least=0)
        whole("kept", self.kept, least=1)

    def plan(self, problem: PlanningProblem, /) -> Plan:
        """Value all shapes within the bounds and rank them."""
        builder = PlanBuilder(problem, "shapes")
        paths = shapes_within(builder, self.factors, self.lengths)
        scores = value_paths(builder, paths, self.caution)
        rank_paths(builder, paths, scores, self.kept)
        return builder.plan()
