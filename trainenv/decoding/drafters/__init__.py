"""Drafters: a small model, the first layers of the target, or n-grams of the text."""

from trainenv.decoding.drafters.causal import CausalDrafter
from trainenv.decoding.drafters.first_layers import first_layers
from trainenv.decoding.drafters.prompt_lookup import PromptLookup

__all__ = ["CausalDrafter", "PromptLookup", "first_layers"]
