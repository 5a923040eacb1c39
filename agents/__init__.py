"""Agents: whatever acts in the environment.

    agents.play(gymnasium.make("trainenv/GPT2-Tiny-v0"), agents.ClipOnly("zclip"), seed=0)      # in an environment
    drive(run, folder, responder=agents.Acting(agent=agents.DoNothing()))                      # in a run that is recorded
    drive(run, folder, responder=agents.ByHand.in_style("palm", run.config.steps))             # by a rule for whole runs

`Agent` is the contract of one of your own. Planners and models come in as arguments. Each is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainenv.agents.agent_callback import Acting
    from trainenv.agents.baselines.clip_only import ClipOnly
    from trainenv.agents.baselines.do_nothing import DoNothing
    from trainenv.agents.baselines.planner_driven import Planned, population
    from trainenv.agents.baselines.rollback_rule import STYLES, ByHand
    from trainenv.agents.baselines.tuned_schedule import Tuned
    from trainenv.agents.branching import Branching, BranchingAgent, Drafting
    from trainenv.agents.contract import Agent
    from trainenv.agents.play import Episode, play

__all__ = [
    "STYLES",
    "Acting",
    "Agent",
    "Branching",
    "BranchingAgent",
    "ByHand",
    "ClipOnly",
    "DoNothing",
    "Drafting",
    "Episode",
    "Planned",
    "Tuned",
    "play",
    "population",
]

_LAZY = {
    "STYLES": "trainenv.agents.baselines.rollback_rule",
    "Acting": "trainenv.agents.agent_callback",
    "Agent": "trainenv.agents.contract",
    "Branching": "trainenv.agents.branching",
    "BranchingAgent": "trainenv.agents.branching",
    "ByHand": "trainenv.agents.baselines.rollback_rule",
    "ClipOnly": "trainenv.agents.baselines.clip_only",
    "DoNothing": "trainenv.agents.baselines.do_nothing",
    "Drafting": "trainenv.agents.branching",
    "Episode": "trainenv.agents.play",
    "Planned": "trainenv.agents.baselines.planner_driven",
    "Tuned": "trainenv.agents.baselines.tuned_schedule",
    "play": "trainenv.agents.play",
    "population": "trainenv.agents.baselines.planner_driven",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'agents' has no attribute {name!r}")


if __name__ == "agents":  # in a checkout: one copy of every class
    from trainenv.tools.checkout import alias

    alias(__name__)
