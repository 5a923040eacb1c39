"""The loop as the command line puts it together: grid search over the shipped world model, which learns from what is verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.types import Budget, Intervention, RunHistory, WorldModel

if TYPE_CHECKING:
    from trainenv.agents.branching import Branching

# verified branches from one refresh of the networks to the next: one costs as much as a small run's
# hundred steps
_REFRESH = 512
_CALM_FUTURES = (
    24  # doing nothing, every change of the learning rate alone and repeated, and a few more
)


def branching(*, planner: str = "grid", learn: bool = True) -> Branching:
    """The branching agent as a callback of `train`, with the shipped model.

    Args:
        planner: a name in `planners.NAMES`, or one that is installed.
        learn: whether the model goes on learning from what is verified.
    """
    from trainenv import planners, worldmodel
    from trainenv.agents.branching import Branching, Drafting
    from trainenv.worldmodel.online import Online
    from trainenv.worldmodel.serialization import load_rehearsal, pretrained

    model = worldmodel.load_pretrained()
    learner = (
        worldmodel.OnlineModel(model, load_rehearsal(pretrained()), Online(refresh=_REFRESH))
        if learn
        else model
    )
    drafting = Drafting(propose=planners.hypergradient, allow=as_risk_asks)
    return Branching(planner=planners.make(planner), model=learner, drafting=drafting)


def as_risk_asks(history: RunHistory, model: WorldModel | None) -> Budget:
    """More futures where the risk of going on as now is higher."""
    from trainenv import planners

    forecast = model.forecast(history, [Intervention()])[0] if model is not None else None
    risk = planners.risk_of(forecast, history.telemetry[-1].reading)
    return Budget(futures=planners.AdaptiveWidth(least=_CALM_FUTURES).of(risk))
