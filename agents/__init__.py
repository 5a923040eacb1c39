"""Agents: everything that steers a training run.

An agent in an environment:

    agents.play(gymnasium.make("trainenv/GPT2-Tiny-v0"), agents.ClipOnly("zclip"), seed=0)

An agent, or a rule for whole runs, as a callback of a recorded run:

    train(run, folder, callback=agents.AgentCallback(agent=agents.ClipOnly("zclip")))
    train(run, folder, callback=agents.RollbackRule.in_style("palm", run.config.steps))
    train(run, folder, callback=agents.Branching(planner=planners.make("grid"), model=model))

`Agent` is the protocol of an agent of your own. An agent knows runs, planners and models only
through the protocols of `trainenv.types`. Each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.agents.agent_callback import AgentCallback
    from trainenv.agents.baselines.clip_only import ClipOnly
    from trainenv.agents.baselines.do_nothing import DoNothing
    from trainenv.agents.baselines.planner_driven import PlannerCallback, population
    from trainenv.agents.baselines.rollback_rule import STYLES, RollbackRule
    from trainenv.agents.baselines.tuned_schedule import TunedSchedule
    from trainenv.agents.branching import Branching, BranchingAgent, PlanningOptions
    from trainenv.agents.contract import Agent
    from trainenv.agents.episodes import Episode, play

__all__ = [
    "STYLES",
    "Agent",
    "AgentCallback",
    "Branching",
    "BranchingAgent",
    "ClipOnly",
    "DoNothing",
    "Episode",
    "PlannerCallback",
    "PlanningOptions",
    "RollbackRule",
    "TunedSchedule",
    "play",
    "population",
]

__getattr__ = lazy(
    __name__,
    {
        "STYLES": "trainenv.agents.baselines.rollback_rule",
        "AgentCallback": "trainenv.agents.agent_callback",
        "Agent": "trainenv.agents.contract",
        "Branching": "trainenv.agents.branching",
        "BranchingAgent": "trainenv.agents.branching",
        "RollbackRule": "trainenv.agents.baselines.rollback_rule",
        "ClipOnly": "trainenv.agents.baselines.clip_only",
        "DoNothing": "trainenv.agents.baselines.do_nothing",
        "PlanningOptions": "trainenv.agents.branching",
        "Episode": "trainenv.agents.episodes",
        "PlannerCallback": "trainenv.agents.baselines.planner_driven",
        "TunedSchedule": "trainenv.agents.baselines.tuned_schedule",
        "play": "trainenv.agents.episodes",
        "population": "trainenv.agents.baselines.planner_driven",
    },
)


if __name__ == "agents":  # in a checkout: one copy of every class
    from trainenv.tools.checkout import alias

    alias(__name__)
