"""Decoding with a draft: a small model proposes tokens, the target verifies them in one call.

    decoder = Decoder(target=target, drafter=CausalDrafter(model=draft), rule=Exact())
    generation = decoder.generate([[1, 2, 3]], max_new_tokens=64)

Rules and drafters have one file each. `contract` has the protocols that both follow, and every noun
of this folder.
"""

from trainenv.decoding.contract import (
    GREEDY,
    Block,
    Draft,
    Drafter,
    DraftRequest,
    DraftSession,
    Generation,
    Rule,
    Sampling,
    Settings,
    TargetCall,
    TargetStates,
)
from trainenv.decoding.decoder import Decoder
from trainenv.decoding.distances import Distance, measure
from trainenv.decoding.drafters import CausalDrafter, HeadsDrafter, PromptLookup, first_layers
from trainenv.decoding.rules import RULES, Exact, Lossy, Pipelined

__all__ = [
    "GREEDY",
    "RULES",
    "Block",
    "CausalDrafter",
    "Decoder",
    "Distance",
    "Draft",
    "DraftRequest",
    "DraftSession",
    "Drafter",
    "Exact",
    "Generation",
    "HeadsDrafter",
    "Lossy",
    "Pipelined",
    "PromptLookup",
    "Rule",
    "Sampling",
    "Settings",
    "TargetCall",
    "TargetStates",
    "first_layers",
    "measure",
]
