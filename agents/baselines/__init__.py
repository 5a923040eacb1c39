"""Baselines: agents and rules that steer without a world model.

| name | does |
|---|---|
| `DoNothing` | leaves the run alone |
| `ClipOnly` | puts one clip policy in force |
| `RollbackRule` | rolls back, skips data and lowers the learning rate at each alarm |
| `TunedSchedule` | tunes learning rate and clip policy before the run |
| `Ramp` | proposes the same ramp of the learning rate at every decision |
| `OpenLoop`, `RatePath` | set the learning rate along a path that no measurement changes |
| `HypergradientDescent` | lets the learning rate follow the hypergradient of the training loss |
| `Marthe` | lets it follow an online hypergradient of the validation loss |
| `PlannerCallback`, `population` | let AutoLRS, PBT or PB2 try changes for real |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.agents.baselines.always_ramp import Ramp
    from trainenv.agents.baselines.clip_only import ClipOnly
    from trainenv.agents.baselines.do_nothing import DoNothing
    from trainenv.agents.baselines.hypergradient_descent import HypergradientDescent
    from trainenv.agents.baselines.marthe import Marthe
    from trainenv.agents.baselines.open_loop import OpenLoop
    from trainenv.agents.baselines.planner_driven import PlannerCallback, population
    from trainenv.agents.baselines.rate_paths import RatePath
    from trainenv.agents.baselines.rollback_rule import STYLES, RollbackRule, Style
    from trainenv.agents.baselines.tuned_schedule import Setting, TunedSchedule

__all__ = [
    "STYLES",
    "ClipOnly",
    "DoNothing",
    "HypergradientDescent",
    "Marthe",
    "OpenLoop",
    "PlannerCallback",
    "Ramp",
    "RatePath",
    "RollbackRule",
    "Setting",
    "Style",
    "TunedSchedule",
    "population",
]

__getattr__ = lazy(
    __name__,
    {
        "ClipOnly": "trainenv.agents.baselines.clip_only",
        "DoNothing": "trainenv.agents.baselines.do_nothing",
        "HypergradientDescent": "trainenv.agents.baselines.hypergradient_descent",
        "Marthe": "trainenv.agents.baselines.marthe",
        "OpenLoop": "trainenv.agents.baselines.open_loop",
        "Ramp": "trainenv.agents.baselines.always_ramp",
        "RatePath": "trainenv.agents.baselines.rate_paths",
        "PlannerCallback": "trainenv.agents.baselines.planner_driven",
        "population": "trainenv.agents.baselines.planner_driven",
        "STYLES": "trainenv.agents.baselines.rollback_rule",
        "RollbackRule": "trainenv.agents.baselines.rollback_rule",
        "Style": "trainenv.agents.baselines.rollback_rule",
        "Setting": "trainenv.agents.baselines.tuned_schedule",
        "TunedSchedule": "trainenv.agents.baselines.tuned_schedule",
    },
)
