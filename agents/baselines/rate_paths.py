"""Paths of the learning rate over a run, as factors that depend on its progress alone.

| name | path |
|---|---|
| `path-1.41` | the factor 1.41 from the first step on |
| `path-up-2-25` | from 1 up to 2 over the first 25 % of the run, then 2 |
| `path-down-0.5-50` | from 1 down to 0.5 over the first half of the run, then 0.5 |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from trainenv.tools.checks import number
from trainenv.types import UserError


@dataclass(frozen=True, kw_only=True)
class RatePath:
    """Factor on the learning rate over the run.

    Args:
        points: Pairs of progress, a share of the budget from 0 to 1, and factor above 0. Progress
            rises. Between two points, ln of the factor is interpolated; before the first and after
            the last point the factor is constant.

    Raises:
        UserError: There is no point, or a number is out of range.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise UserError("a path needs at least one point (progress, factor), found none")
        for progress, factor in self.points:
            number("the progress of a point", progress, least=0, most=1)
            number("the factor of a point", factor, above=0)
        if any(left >= right for (left, _), (right, _) in pairwise(self.points)):
            raise UserError(
                f"the progress of a path's points must rise, found {self.points}; sort them"
            )

    @classmethod
    def constant(cls, factor: float) -> RatePath:
        """Return the path with one factor from the first step on."""
        return cls(points=((0.0, factor),))

    @classmethod
    def ramp(cls, factor: float, share: float) -> RatePath:
        """Return the path from 1 to a factor over the first `share` of the run, then the factor."""
        return cls(points=((0.0, 1.0), (share, factor)))

    def factor(self, progress: float) -> float:
        """Return the factor at a progress from 0 to 1."""
        first = self.points[0]
        if progress <= first[0]:
            return first[1]
        for (start, low), (end, high) in pairwise(self.points):
            if progress <= end:
                share = (progress - start) / (end - start)
                return math.exp((1 - share) * math.log(low) + share * math.log(high))
        return self.points[-1][1]


PATHS: Mapping[str, RatePath] = {
    "path-0.1": RatePath.constant(0.1),
    "path-0.18": RatePath.constant(0.18),
    "path-0.25": RatePath.constant(0.25),
    "path-0.35": RatePath.constant(0.35),
    "path-0.5": RatePath.constant(0.5),
    "path-0.7": RatePath.constant(0.7),
    "path-0.84": RatePath.constant(0.84),
    "path-1": RatePath.constant(1.0),
    "path-1.19": RatePath.constant(1.19),
    "path-1.41": RatePath.constant(1.41),
    "path-2": RatePath.constant(2.0),
    "path-2.8": RatePath.constant(2.8),
    "path-4": RatePath.constant(4.0),
    "path-up-1.4-25": RatePath.ramp(1.4, 0.25),
    "path-up-2-25": RatePath.ramp(2.0, 0.25),
    "path-up-2.8-25": RatePath.ramp(2.8, 0.25),
    "path-up-4-25": RatePath.ramp(4.0, 0.25),
    "path-up-6-25": RatePath.ramp(6.0, 0.25),
    "path-up-1.4-50": RatePath.ramp(1.4, 0.5),
    "path-up-2-50": RatePath.ramp(2.0, 0.5),
    "path-up-2.8-50": RatePath.ramp(2.8, 0.5),
    "path-up-4-50": RatePath.ramp(4.0, 0.5),
    "path-up-6-50": RatePath.ramp(6.0, 0.5),
    "path-down-0.5-25": RatePath.ramp(0.5, 0.25),
    "path-down-0.25-25": RatePath.ramp(0.25, 0.25),
    "path-down-0.5-50": RatePath.ramp(0.5, 0.5),
    "path-down-0.25-50": RatePath.ramp(0.25, 0.5),
}
"""Paths by the name of their method."""
