"""Drafters: a small model, first layers or future heads of the target, or n-grams of the text."""

from trainenv.decoding.drafters.causal import CausalDrafter
from trainenv.decoding.drafters.first_layers import first_layers
from trainenv.decoding.drafters.future_heads import HeadsDrafter
from trainenv.decoding.drafters.prompt_lookup import PromptLookup

__all__ = ["CausalDrafter", "HeadsDrafter", "PromptLookup", "first_layers"]
