"""Grid search: evaluate the largest even lattice that the budget covers.

The lattice is evaluated in the order of a random permutation, so that a search that is stopped
early has seen all regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainenv.agents.thresholds.contract import TuningProblem
from trainenv.tools.checks import whole


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Evaluate an even lattice.

    Args:
        seed: Random seed of the order.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    name: ClassVar[str] = "grid"

    seed: int = 0

    def __post_init__(self) -> None:
        whole("seed", self.seed, least=0)

    def search(self, problem: TuningProblem, /) -> None:
        """Evaluate each point of the lattice once."""
        points = problem.space.lattice(problem.budget)
        for point in np.random.default_rng(self.seed).permutation(points):
            if problem.left < 1:
                break
            problem.score(point)
