"""The branching agent: the whole loop of trigger, rewind, draft, verify and collapse on any training environment."""

from agents.branching.agent import BranchingAgent
from agents.branching.drafting import Drafting
from agents.branching.responder import Branching

__all__ = ["Branching", "BranchingAgent", "Drafting"]
