"""The contract of planners as checks for any planner, and a toy world to try planners in.

    trainenv.planners.testing.check(MyPlanner())                       # all checks of CHECKS
    plan = MyPlanner().plan(ToyWorld(seed=1).problem(seed=0))

`ToyWorld` needs no training run: it knows the effect of every sequence exactly. `watched` counts
what a planner asks of the model and the executor, and makes them fail as real ones do.
"""

from __future__ import annotations

from trainenv.planners.testing.contract import CHECKS, check
from trainenv.planners.testing.toy import START, ToyExecutor, ToyModel, ToyWorld
from trainenv.planners.testing.watched import WatchedExecutor, WatchedModel, watched

__all__ = [
    "CHECKS",
    "START",
    "ToyExecutor",
    "ToyModel",
    "ToyWorld",
    "WatchedExecutor",
    "WatchedModel",
    "check",
    "watched",
]
