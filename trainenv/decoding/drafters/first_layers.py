"""The first layers of the target as the draft (self-speculation).

The draft shares the weights of the target: embedding, its first blocks, last norm and output head.
It keeps its own keys and values, so the first layers read each token twice. A target trained for
early exits (Elhoushi 2024, LayerSkip, arXiv:2404.16710) drafts well; another may not.
"""

from __future__ import annotations

import copy

from torch import nn

from trainenv.decoding.drafters.causal import CausalDrafter
from trainenv.tools.checks import whole
from trainenv.types import UserError


def first_layers(
    target: nn.Module, layers: int, *, cached: bool = True, tokenizer: object | None = None
) -> CausalDrafter:
    """Return a drafter made of the first layers of the target.

    Args:
        target: Causal LM of transformers with one list of blocks, in evaluation mode.
        layers: Number of blocks that stay, at least 1 and fewer than the target has.
        cached: False to read all tokens at each call.
        tokenizer: Tokenizer of the target, None if it is not known.

    Raises:
        UserError: The target has no such blocks.
    """
    return CausalDrafter(model=shortened(target, layers), cached=cached, tokenizer=tokenizer)


def shortened(target: nn.Module, layers: int) -> nn.Module:
    """Return a model that shares the weights of the target and has only its first blocks."""
    whole("layers", layers, least=1)
    shared = {id(tensor): tensor for tensor in (*target.parameters(), *target.buffers())}
    draft = copy.deepcopy(target, shared)  # weights are known already, so they are not copied
    blocks = max(
        (module for module in draft.modules() if isinstance(module, nn.ModuleList)),
        key=len,
        default=nn.ModuleList(),
    )
    if layers >= len(blocks):
        raise UserError(
            f"layers must be below the number of blocks of the target ({len(blocks)}), found "
            f"{layers}; take fewer"
        )
    del blocks[layers:]
    config = getattr(draft, "config", None)
    if config is not None:
        config.num_hidden_layers = layers
    return draft
