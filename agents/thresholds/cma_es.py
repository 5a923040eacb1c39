"""CMA-ES (Hansen 2016, arXiv:1604.00772) with the package `cmaes`.

Each round draws a population from a Gaussian, and moves and reshapes the Gaussian towards the
better points. The scores of failed evaluations rank last. Once the Gaussian has collapsed, the
search restarts with a wide one at a random point (Auger and Hansen 2005, without larger
populations), because flat regions are common: a roll-back threshold above ten accepts everything.

The package minimises, so it is given negated scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainenv.agents.thresholds.contract import Floats, TuningProblem
from trainenv.tools.checks import number, whole
from trainenv.tools.optional import require


@dataclass(frozen=True, kw_only=True)
class CmaEs:
    """Evolve a Gaussian over the unit cube.

    Args:
        centre: Mean of the first round, shares of each range; None for the middle.
        spread: Standard deviation of the first round, as a share of each range.
        population: Number of points of a round; None for 4 + ⌊3 ln D⌋.
        collapsed: Standard deviation at which the search restarts.
        seed: Random seed.

    Raises:
        UserError: A hyperparameter is out of range, or cmaes is not installed.
    """

    name: ClassVar[str] = "cma-es"

    centre: tuple[float, ...] | None = None
    spread: float = 0.3
    population: int | None = None
    collapsed: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        number("spread", self.spread, above=0)
        number("collapsed", self.collapsed, least=0)
        whole("seed", self.seed, least=0)
        if self.population is not None:
            whole("population", self.population, least=2)
        require("cmaes", "the method cma-es")

    def search(self, problem: TuningProblem, /) -> None:
        """Evolve until the budget is spent."""
        from cmaes import CMA

        rng = np.random.default_rng(self.seed)
        dimensions = problem.space.dimensions
        centre = np.full(dimensions, 0.5)
        if self.centre is not None:
            centre = np.clip(np.array(self.centre, dtype=np.float64), 0, 1)
        while problem.left > 0:
            evolution = CMA(
                mean=centre,
                sigma=self.spread,
                bounds=np.tile([0.0, 1.0], (dimensions, 1)),
                seed=int(rng.integers(2**31)),
                population_size=self.population,
            )
            while problem.left > 0 and not self._over(evolution):
                _round(evolution, problem)
            centre = rng.random(dimensions)

    def _over(self, evolution: object) -> bool:
        """Tell if the Gaussian has collapsed."""
        deviation = float(evolution._sigma)  # type: ignore[attr-defined]
        return deviation < self.collapsed or bool(evolution.should_stop())  # type: ignore[attr-defined]


def _round(evolution: object, problem: TuningProblem) -> None:
    """Evaluate one population; an incomplete last one teaches nothing."""
    asked = list[tuple[Floats, float]]()
    for _ in range(evolution.population_size):  # type: ignore[attr-defined]
        if problem.left < 1:
            return
        point = evolution.ask()  # type: ignore[attr-defined]
        asked.append((point, problem.score(point)))
    worst = max((-score for _, score in asked if math.isfinite(score)), default=0.0) + 1.0
    evolution.tell(  # type: ignore[attr-defined]
        [(point, -score if math.isfinite(score) else worst) for point, score in asked]
    )
