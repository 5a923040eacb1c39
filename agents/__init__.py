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
    from agents.acting import Acting
    from agents.branching import Branching, BranchingAgent, Drafting
    from agents.by_hand import STYLES, ByHand
    from agents.clip_only import ClipOnly
    from agents.contract import Agent
    from agents.do_nothing import DoNothing
    from agents.planned import Planned, population
    from agents.playing import Episode, play
    from agents.tuned import Tuned

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
    "STYLES": "agents.by_hand",
    "Acting": "agents.acting",
    "Agent": "agents.contract",
    "Branching": "agents.branching",
    "BranchingAgent": "agents.branching",
    "ByHand": "agents.by_hand",
    "ClipOnly": "agents.clip_only",
    "DoNothing": "agents.do_nothing",
    "Drafting": "agents.branching",
    "Episode": "agents.playing",
    "Planned": "agents.planned",
    "Tuned": "agents.tuned",
    "play": "agents.playing",
    "population": "agents.planned",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'agents' has no attribute {name!r}")
