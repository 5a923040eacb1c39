"""Random search (Bergstra and Bengio 2012): evaluate points drawn uniformly.

It is the baseline that other methods must beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainenv.agents.thresholds.contract import TuningProblem
from trainenv.tools.checks import whole


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Evaluate random points.

    Args:
        seed: Random seed.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        whole("seed", self.seed, least=0)

    def search(self, problem: TuningProblem, /) -> None:
        """Evaluate points until the budget is spent."""
        rng = np.random.default_rng(self.seed)
        while problem.left > 0:
            problem.score(rng.random(problem.space.dimensions))
