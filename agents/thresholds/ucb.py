"""UCB over a grid, with a Gaussian process (Srinivas et al. 2010, arXiv:0912.3995).

The arms are the points of a fine lattice. Neighbouring thresholds decode almost alike, so the arms
share their evaluations: a Gaussian process is fitted to all evaluations, and the next arm is
the one with the highest upper confidence bound

    mean + √β_t · deviation,   β_t = 2 ln(N t² π² / 6δ)

for N arms. The first evaluations are a quasi-random choice.

Deviation: β_t is divided by `tamed`, as in the experiments of the paper (there 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.stats import qmc

from trainenv.agents.thresholds.contract import Floats, TuningProblem
from trainenv.tools.checks import number, whole
from trainenv.tools.gaussian_process import fit

_WIDTHS = (0.08, 0.15, 0.3, 0.6, 1.2)  # of the kernel, shares of the ranges


@dataclass(frozen=True, kw_only=True)
class UCB:
    """Evaluate the arm with the highest upper confidence bound.

    Args:
        arms: Largest number of arms.
        startup: Number of evaluations before the process is fitted.
        noise: Variance of the noise of a score, as a share of the variance of all scores.
        delta: Probability δ that some bound fails.
        tamed: Divisor of β_t.
        memory: Largest number of evaluations that the process is fitted to: the best half of them
            and the newest.
        seed: Random seed.

    Raises:
        UserError: A hyperparameter is out of range.
    """

    name: ClassVar[str] = "ucb"

    arms: int = 900
    startup: int = 8
    noise: float = 0.001
    delta: float = 0.1
    tamed: float = 5.0
    memory: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("arms", "startup", "memory"):
            whole(name, getattr(self, name), least=2)
        whole("seed", self.seed, least=0)
        number("noise", self.noise, above=0)
        number("delta", self.delta, above=0, below=1)
        number("tamed", self.tamed, above=0)

    def search(self, problem: TuningProblem, /) -> None:
        """Pull arms until the budget is spent."""
        arms = problem.space.lattice(self.arms)
        first = qmc.Sobol(problem.space.dimensions, seed=np.random.default_rng(self.seed))
        points = list[Floats]()
        scores = list[float]()
        started = first.random(2 ** math.ceil(math.log2(self.startup)))[: self.startup]
        while problem.left > 0:
            point = started[len(points)] if len(points) < self.startup else None
            if point is None:
                point = self._next(arms, np.array(points), np.array(scores))
            points.append(point)
            scores.append(problem.score(point))

    def _next(self, arms: Floats, points: Floats, scores: Floats) -> Floats:
        """Return the arm with the highest bound; failed evaluations count as the worst score."""
        finite = scores[np.isfinite(scores)]
        if not len(finite):
            return np.asarray(arms[len(scores) % len(arms)])
        values = np.where(np.isfinite(scores), scores, finite.min())
        kept = np.arange(len(values))
        if len(values) > self.memory:
            best = np.argsort(-values, kind="stable")[: self.memory // 2]
            kept = np.unique(np.concatenate([best, kept[-(self.memory // 2) :]]))
        process = fit(points[kept], values[kept], noise=self.noise, widths=_WIDTHS)
        mean, deviation = process.at(arms)
        step = len(values) + 1
        beta = 2 * math.log(len(arms) * step**2 * math.pi**2 / (6 * self.delta)) / self.tamed
        return np.asarray(arms[int(np.argmax(mean + math.sqrt(beta) * deviation))])
