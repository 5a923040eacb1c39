"""Methods that find the thresholds of speculative decoding, at equal budgets of evaluations.

    problem = TuningProblem(measure, space, budget=64)
    tuned = tune(make("grid"), problem)
    tuned.best.values, tuned.best.score

| name | does |
|---|---|
| `grid` | evaluates an even lattice |
| `random` | evaluates points drawn uniformly |
| `cma-es` | evolves a Gaussian |
| `ucb` | pulls the arm of a lattice with the highest bound of a Gaussian process |
| `tpe` | asks Optuna's sampler |
| `ppo` | walks over the settings with a policy that learns |

A method of your own has a `name` and a method `search(problem)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainenv.agents.thresholds.cma_es import CmaEs
from trainenv.agents.thresholds.contract import (
    Axis,
    ThresholdMethod,
    ThresholdSpace,
    Trial,
    Tuned,
    TuningProblem,
    tune,
)
from trainenv.agents.thresholds.grid import Grid
from trainenv.agents.thresholds.ppo import PPO, ThresholdPolicy, train_policy
from trainenv.agents.thresholds.random_search import RandomSearch
from trainenv.agents.thresholds.tpe import TPE
from trainenv.agents.thresholds.ucb import UCB
from trainenv.tools.checks import choice, names

METHODS: Mapping[str, type[Any]] = {
    "grid": Grid,
    "random": RandomSearch,
    "cma-es": CmaEs,
    "ucb": UCB,
    "tpe": TPE,
    "ppo": PPO,
}

__all__ = [
    "METHODS",
    "PPO",
    "TPE",
    "UCB",
    "Axis",
    "CmaEs",
    "Grid",
    "RandomSearch",
    "ThresholdMethod",
    "ThresholdPolicy",
    "ThresholdSpace",
    "Trial",
    "Tuned",
    "TuningProblem",
    "make",
    "train_policy",
    "tune",
]


def make(name: str, **hyperparameters: Any) -> ThresholdMethod:
    """Make the method of that name.

    Args:
        name: Name of the method, one of `METHODS`.
        hyperparameters: Hyperparameters by name; the others keep their defaults.

    Raises:
        UserError: There is no such method or hyperparameter, or a value is out of range.
    """
    choice("method", name, METHODS)
    names(name, METHODS[name], hyperparameters)
    made: ThresholdMethod = METHODS[name](**hyperparameters)
    return made
