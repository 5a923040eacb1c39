"""TPE (Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127) with Optuna's ask and tell.

TPE keeps a density l(x) of the better points and a density g(x) of the others, and asks next where
l/g is greatest, here jointly over the axes. A failed evaluation is a failed trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainenv.agents.thresholds.contract import TuningProblem
from trainenv.tools.checks import whole
from trainenv.tools.optional import require
from trainenv.tools.optuna_studies import quiet_study, tell


@dataclass(frozen=True, kw_only=True)
class TPE:
    """Evaluate the points that the sampler asks for.

    Args:
        startup: Number of random evaluations before the sampler learns.
        seed: Random seed.

    Raises:
        UserError: A hyperparameter is out of range, or optuna is not installed.
    """

    name: ClassVar[str] = "tpe"

    startup: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        whole("startup", self.startup, least=1)
        whole("seed", self.seed, least=0)
        require("optuna", "the method tpe")

    def search(self, problem: TuningProblem, /) -> None:
        """Ask and tell until the budget is spent."""
        from optuna.distributions import FloatDistribution

        names = [axis.name for axis in problem.space.axes]
        study = quiet_study("tpe", self.startup, self.seed)
        while problem.left > 0:
            trial = study.ask({name: FloatDistribution(0.0, 1.0) for name in names})
            tell(study, trial, -problem.score([trial.params[name] for name in names]))
