"""The branching agent: the whole loop of trigger, rewind, draft, verify and collapse on any training environment."""

from trainenv.agents.branching.agent import BranchingAgent
from trainenv.agents.branching.drafting import Drafting
from trainenv.agents.branching.responder import Branching

__all__ = ["Branching", "BranchingAgent", "Drafting"]
