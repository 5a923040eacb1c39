"""GPT-2 of transformers with a shorter forward pass for training.

Importing this module imports transformers; `trainenv.models.build` does so only when a model is
built.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from trainenv.models.segments import Segmented


class GPT2(Segmented, GPT2LMHeadModel):
    """`GPT2LMHeadModel` whose call with nothing but tokens goes straight through the blocks.

    Same modules, same weights, same bits. Masks, caches and output recorders, which plain causal
    training does not need, are left out: they take 4 to 6 % of a small model's step. Any other
    call, `generate` included, takes the usual path.
    """

    def forward(
        self, input_ids: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutputWithCrossAttentions:
        """Return logits [B, T, V] for int64 tokens [B, T]."""
        if input_ids is None or kwargs or self.config.use_cache or not self._masks_inside:
            usual: CausalLMOutputWithCrossAttentions = super().forward(input_ids, **kwargs)
            return usual
        return CausalLMOutputWithCrossAttentions(logits=self.lm_head(self.hidden(input_ids)))

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Return the states that the output layer reads, [B, T, W], for int64 tokens [B, T]."""
        body = self.transformer
        if not self._masks_inside:
            usual: Tensor = body(input_ids, use_cache=False).last_hidden_state
            return usual
        hidden = body.drop(body.wte(input_ids) + body.wpe.weight[: input_ids.shape[1]])  # (B, T, W)
        hidden = self.through(body.h, _run, hidden)
        states: Tensor = body.ln_f(hidden)
        return states

    @property
    def _masks_inside(self) -> bool:
        """True if attention is causal without a mask, which eager attention needs."""
        return bool(self.config._attn_implementation == "sdpa")


def _run(block: nn.Module, hidden: Tensor) -> Tensor:
    output = block(hidden)
    if isinstance(output, tuple):  # up to transformers 5.2
        output = output[0]
    states: Tensor = output
    return states


class ScaledEmbedding(nn.Embedding):
    """Token embedding multiplied by √width, so that the shortcut starts at a deviation near 1.

    It is one of the two conditions of Takase 2024 ("Spike No More") that GPT-2's initialisation
    does not meet. The weights stay small, because the output layer shares them.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scaled embeddings [..., W] of int64 tokens [...]."""
        return super().forward(tokens) * math.sqrt(self.embedding_dim)
