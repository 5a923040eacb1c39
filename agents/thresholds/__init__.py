"""Methods that find the thresholds of speculative decoding, at equal budgets of evaluations.

    problem = TuningProblem(measure, space, budget=64)
    tuned = tune(make("cma-es"), problem)
    tuned.best.values, tuned.best.score

| name | does |
|---|---|
| `grid` | evaluates an even lattice |
| `random` | evaluates points drawn uniformly |
| `cma-es` | evolves a Gaussian |
| `ucb` | pulls the arm of a lattice with the highest bound of a Gaussian process |
| `tpe` | asks Optuna's sampler |
| `ppo` | walks over the settings with a policy that learns |

A method of your own has a `name` and a method `search(problem)`. `controls` holds the rules that
decide while decoding, `tasks` a model pair on a corpus, `strategies` all of them by name. Each name
is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
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
    from trainenv.agents.thresholds.methods import METHODS, make
    from trainenv.agents.thresholds.ppo import PPO, ThresholdPolicy, train_policy
    from trainenv.agents.thresholds.random_search import RandomSearch
    from trainenv.agents.thresholds.strategies import STRATEGIES
    from trainenv.agents.thresholds.tasks import DecodingTask
    from trainenv.agents.thresholds.tpe import TPE
    from trainenv.agents.thresholds.ucb import UCB

__all__ = [
    "METHODS",
    "PPO",
    "STRATEGIES",
    "TPE",
    "UCB",
    "Axis",
    "CmaEs",
    "DecodingTask",
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

__getattr__ = lazy(
    __name__,
    {
        "METHODS": ".methods",
        "PPO": ".ppo",
        "STRATEGIES": ".strategies",
        "TPE": ".tpe",
        "UCB": ".ucb",
        "Axis": ".contract",
        "CmaEs": ".cma_es",
        "DecodingTask": ".tasks",
        "Grid": ".grid",
        "RandomSearch": ".random_search",
        "ThresholdMethod": ".contract",
        "ThresholdPolicy": ".ppo",
        "ThresholdSpace": ".contract",
        "Trial": ".contract",
        "Tuned": ".contract",
        "TuningProblem": ".contract",
        "make": ".methods",
        "train_policy": ".ppo",
        "tune": ".contract",
    },
)
