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
    from trainenv.agents.acting import Acting
    from trainenv.agents.branching import Branching, BranchingAgent, Drafting
    from trainenv.agents.by_hand import STYLES, ByHand
    from trainenv.agents.clip_only import ClipOnly
    from trainenv.agents.contract import Agent
    from trainenv.agents.do_nothing import DoNothing
    from trainenv.agents.planned import Planned, population
    from trainenv.agents.playing import Episode, play
    from trainenv.agents.tuned import Tuned

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
    "STYLES": "trainenv.agents.by_hand",
    "Acting": "trainenv.agents.acting",
    "Agent": "trainenv.agents.contract",
    "Branching": "trainenv.agents.branching",
    "BranchingAgent": "trainenv.agents.branching",
    "ByHand": "trainenv.agents.by_hand",
    "ClipOnly": "trainenv.agents.clip_only",
    "DoNothing": "trainenv.agents.do_nothing",
    "Drafting": "trainenv.agents.branching",
    "Episode": "trainenv.agents.playing",
    "Planned": "trainenv.agents.planned",
    "Tuned": "trainenv.agents.tuned",
    "play": "trainenv.agents.playing",
    "population": "trainenv.agents.planned",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'agents' has no attribute {name!r}")


if __name__ == "agents":  # in a checkout: one copy of every class
    from trainenv.tools.checkout import alias

    alias(__name__)
