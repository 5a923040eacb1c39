"""The branching loop with its default parts.

At a checkpoint the planner values paths of the learning rate to the end of the run with the shipped
model, and the run follows the best of them in small steps. The model learns from verified branches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trainenv.types import Budget, Intervention, RunHistory, WorldModel

if TYPE_CHECKING:
    from trainenv.agents.branching import Branching
    from trainenv.config.schema import BranchingSettings

# Verified branches between two refreshes of the networks. A refresh costs as much as a hundred
# steps of a small run.
_REFRESH = 512
# Futures drafted where the risk is low: doing nothing, every change of the learning rate once and
# repeated, and a few more.
_CALM_FUTURES = 24
_TO_THE_END = ("shapes", "cem")  # planners of whole paths


def branching(*, planner: str = "shapes", learn: bool = True, blind: bool = False) -> Branching:
    """Return the branching agent as a callback of `train`, with the shipped model.

    Args:
        planner: Name of a planner in `planners.NAMES`, or of an installed one.
        learn: Flag: the model learns from verified branches during the run.
        blind: True to show the model nothing of the run, which is an ablation. What it learns from
            verified branches are then the widths of its intervals only.
    """
    from trainenv import planners, worldmodel
    from trainenv.agents.branching import Branching, PlanningOptions
    from trainenv.worldmodel.online import Online
    from trainenv.worldmodel.serialization import load_rehearsal, pretrained

    shipped = worldmodel.load_pretrained()
    if blind:
        shipped = shipped.blinded()
    model: worldmodel.Model | worldmodel.OnlineModel = shipped
    if learn:
        online = Online(refresh=_REFRESH)
        model = worldmodel.OnlineModel(shipped, load_rehearsal(pretrained()), online)
    planning = PlanningOptions(propose=planners.hypergradient, allow=allow_by_risk)
    if planner in _TO_THE_END:
        planning = PlanningOptions(to_the_end=True)
    flags = ("--branching", "--planner", planner) if learn and not blind else ()
    return Branching(planner=planners.make(planner), model=model, planning=planning, flags=flags)


def ramp(settings: BranchingSettings, *, factor: float, decisions: int = 4) -> Branching:
    """Return the branching loop without a model, which always proposes the same ramp.

    Triggers, verification and rollback are those of the loop. Only the least forecast gain of a
    verified candidate is none, since nothing is forecast.

    Args:
        settings: Settings of the loop.
        factor: Factor on the learning rate at each decision of the ramp.
        decisions: Number of decisions of the ramp.
    """
    from trainenv.agents.baselines.always_ramp import Ramp
    from trainenv.agents.branching import Branching
    from trainenv.agents.branching.branching_loop import verification_of

    verification = replace(verification_of(settings), worth=0.0)
    planner = Ramp(factor=factor, decisions=decisions)
    return Branching(planner=planner, verification=verification)


def allow_by_risk(history: RunHistory, model: WorldModel | None) -> Budget:
    """Return a budget of futures that grows with the risk of doing nothing."""
    from trainenv import planners

    forecast = None
    if model is not None:
        forecast = model.forecast(history, [Intervention()])[0]
    risk = planners.risk_of(forecast, history.telemetry[-1].reading)
    return Budget(futures=planners.AdaptiveWidth(least=_CALM_FUTURES).of(risk))
