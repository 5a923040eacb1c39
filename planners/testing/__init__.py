"""The planners' contract as checks for anybody's planner, and a world without a training run to try planners on.

trainenv.planners.testing.check(MyPlanner())                    # all of it; CHECKS has the checks
one by one plan = MyPlanner().plan(ToyWorld(seed=1).problem(seed=0))
"""

from __future__ import annotations

from trainenv.planners.testing.contract import CHECKS, check
from trainenv.planners.testing.toy import InForce, ToyExecutor, ToyModel, ToyWorld
from trainenv.planners.testing.watched import WatchedExecutor, WatchedModel, watched

__all__ = [
    "CHECKS",
    "InForce",
    "ToyExecutor",
    "ToyModel",
    "ToyWorld",
    "WatchedExecutor",
    "WatchedModel",
    "check",
    "watched",
]
