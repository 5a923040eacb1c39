"""T5 of transformers (Raffel 2020) with a shorter forward pass for training, and its facts.

Importing this module imports transformers; `trainenv.models.build` does so only when a model is
built.
"""

from __future__ import annotations

import math
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5Block

from trainenv.models.segments import Segmented
from trainenv.models.spec import ModelSpec

ATTENTION = "sdpa" if getattr(T5ForConditionalGeneration, "_supports_sdpa", False) else "eager"
"""Attention of T5: transformers before 5 has only the eager one."""
_NEEDS_PLACES = "cache_position" in signature(T5Block.forward).parameters  # up to transformers 4
_BUCKETS = 32  # of distances, in the bias of attention


class T5Spec(ModelSpec):
    """Facts about a T5 that is trained on inputs and targets of fixed lengths.

    The entropy of its attention is not measured: it is not causal and has a bias by distance.

    Args:
        inputs: Length of the inputs in tokens.
        targets: Length of the targets in tokens.
    """

    position_names = ("relative_attention_bias",)

    def __init__(self, *, inputs: int, targets: int) -> None:
        self.inputs = inputs
        self.targets = targets

    def usual_lr(self, model: nn.Module) -> float:
        """Return NaN: the rule of thumb was measured for GPT-2s."""
        return math.nan

    def flops_per_token(self, model: nn.Module, context: int | None = None) -> float:
        """Return the FLOPs of a forward and backward pass for one input that counts.

        A sequence counts inputs − 1 of them, as `trainenv.training.micro_batches.pass_size` does.
        """
        config: Any = model.config
        return t5_flops(
            layers=config.num_layers,
            width=config.d_model,
            vocabulary=config.vocab_size,
            inputs=self.inputs,
            targets=self.targets,
        ) / (self.inputs - 1)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """Return the blocks of the encoder, then those of the decoder."""
        t5: Any = model
        return [*t5.encoder.block, *t5.decoder.block]

    def embedding(self, model: nn.Module) -> nn.Module | None:
        """Return the embedding that encoder and decoder share."""
        t5: Any = model
        shared: nn.Module = t5.shared
        return shared


class T5(Segmented, T5ForConditionalGeneration):
    """`T5ForConditionalGeneration` whose call with nothing but tokens runs through its blocks.

    Same modules, same weights, same function. Masks of padding, caches and output recorders, which
    training on whole sequences does not need, are left out. Any other call, `generate` included,
    takes the usual path.

    Args:
        config: Configuration of a T5.
        spec: Facts about the model; None for those of any model of transformers.
    """

    def __init__(self, config: T5Config, spec: T5Spec | None = None) -> None:
        super().__init__(config)
        self.spec = spec

    def forward(
        self,
        input_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Return logits [B, O, V] for int64 inputs [B, I] and shifted targets [B, O]."""
        if input_ids is None or decoder_input_ids is None or kwargs:
            usual: Seq2SeqLMOutput = super().forward(
                input_ids=input_ids, decoder_input_ids=decoder_input_ids, **kwargs
            )
            return usual
        read = self._states(self.encoder, input_ids)  # (B, I, W)
        written = self._states(self.decoder, decoder_input_ids, read)  # (B, O, W)
        # The output layer shares the embedding, whose numbers have a deviation of 1.
        logits = self.lm_head(written * self.model_dim**-0.5)
        return Seq2SeqLMOutput(logits=logits)

    def _states(self, stack: Any, tokens: Tensor, read: Tensor | None = None) -> Tensor:
        """Run tokens through the encoder, or through the decoder with what the encoder read."""
        bias = _position_bias(stack, tokens.shape[1])
        no_bias = None
        if read is not None:
            no_bias = torch.zeros((1, 1, 1, 1), dtype=bias.dtype, device=bias.device)

        places: dict[str, Tensor] = {}
        if _NEEDS_PLACES:
            places["cache_position"] = torch.arange(tokens.shape[1], device=bias.device)

        def call(block: nn.Module, hidden: Tensor) -> Tensor:
            output: Tensor = block(hidden, None, bias, read, None, no_bias, **places)[0]
            return output

        hidden = self.through(stack.block, call, stack.dropout(self.shared(tokens)))
        output: Tensor = stack.dropout(stack.final_layer_norm(hidden))
        return output


def _position_bias(stack: Any, length: int) -> Tensor:
    """Return the bias of attention by distance, [1, H, T, T]; in the decoder with its causal mask.

    The first block has the bias of all blocks.
    """
    attention = stack.block[0].layer[0].SelfAttention
    device = stack.final_layer_norm.weight.device
    bias: Tensor = attention.compute_bias(length, length, device=device)
    if not stack.is_decoder:
        return bias
    later = torch.ones((length, length), dtype=torch.bool, device=bias.device).triu(1)
    return bias.masked_fill(later, torch.finfo(bias.dtype).min)


def t5_parameters(*, layers: int, width: int, heads: int, vocabulary: int) -> int:
    """Return the number of parameters of encoder, decoder and the embedding that all share."""
    encoder = layers * (12 * width**2 + 2 * width)
    decoder = layers * (16 * width**2 + 3 * width)
    return vocabulary * width + encoder + decoder + 2 * (width + _BUCKETS * heads)


def t5_flops(*, layers: int, width: int, vocabulary: int, inputs: int, targets: int) -> float:
    """Return the FLOPs of a forward and backward pass over one sequence.

    Each parameter counts for the tokens that it works on, and attention for each pair of tokens.
    The keys and values of the cross-attention are computed from the inputs.
    """
    read = layers * (14 * width**2 + 2 * width) + width
    written = layers * (14 * width**2 + 3 * width) + width + vocabulary * width
    pairs = inputs**2 + targets**2 + targets * inputs
    return 6.0 * (read * inputs + written * targets) + 12.0 * layers * width * pairs
