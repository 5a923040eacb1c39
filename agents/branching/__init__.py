"""The branching agent: the whole loop of trigger, rewind, draft, verify and collapse on any training environment."""

from trainenv.agents.branching.agent import BranchingAgent
from trainenv.agents.branching.branching_loop import Branching
from trainenv.agents.branching.problems import Drafting

__all__ = ["Branching", "BranchingAgent", "Drafting"]
