"""The branching loop with its default parts.

A grid search drafts over the shipped world model, and the model learns from verified branches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.types import Budget, Intervention, RunHistory, WorldModel

if TYPE_CHECKING:
    from trainenv.agents.branching import Branching

# Verified branches between two refreshes of the networks. A refresh costs as much as a hundred
# steps of a small run.
_REFRESH = 512
# Futures drafted where the risk is low: doing nothing, every change of the learning rate once and
# repeated, and a few more.
_CALM_FUTURES = 24
_TO_THE_END = ("shapes", "cem")  # planners of whole paths


def branching(*, planner: str = "shapes", learn: bool = True) -> Branching:
    """Return the branching agent as a callback of `train`, with the shipped model.

    Args:
        planner: Name of a planner in `planners.NAMES`, or of an installed one.
        learn: Flag: the model learns from verified branches during the run.
    """
    from trainenv import planners, worldmodel
    from trainenv.agents.branching import Branching, PlanningOptions
    from trainenv.worldmodel.online import Online
    from trainenv.worldmodel.serialization import load_rehearsal, pretrained

    shipped = worldmodel.load_pretrained()
    model: worldmodel.Model | worldmodel.OnlineModel = shipped
    if learn:
        online = Online(refresh=_REFRESH)
        model = worldmodel.OnlineModel(shipped, load_rehearsal(pretrained()), online)
    planning = PlanningOptions(propose=planners.hypergradient, allow=allow_by_risk)
    if planner in _TO_THE_END:
        planning = PlanningOptions(to_the_end=True)
    return Branching(planner=planners.make(planner), model=model, planning=planning)


def allow_by_risk(history: RunHistory, model: WorldModel | None) -> Budget:
    """Return a budget of futures that grows with the risk of doing nothing."""
    from trainenv import planners

    forecast = None
    if model is not None:
        forecast = model.forecast(history, [Intervention()])[0]
    risk = planners.risk_of(forecast, history.telemetry[-1].reading)
    return Budget(futures=planners.AdaptiveWidth(least=_CALM_FUTURES).of(risk))
