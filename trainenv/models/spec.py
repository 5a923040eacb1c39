"""`ModelSpec`: the facts about an architecture that training, probe and accounting depend on.

A model of your own may carry its spec as the attribute `spec`; without one it is read as a model of
transformers is. Nothing else in the project knows the names of an architecture's parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

USUAL_RATE = 0.192
"""Usual peak learning rate × width: the best rate of AdamW halves as the width doubles.

Measured for byte-level GPT-2s of width 16 to 128, at rates from 1.5e-3 to 2.4e-2.
"""
Heads = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Output of an attention's projection → queries and keys, [B, H, T, D] each."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of a model; None where the model does not have the part.

    Attributes:
        layers: Number of blocks.
        width: Size of the hidden state.
        heads: Number of attention heads a block.
        vocabulary: Number of tokens.
    """

    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    vocabulary: int | None = None


class ModelSpec:
    """Facts about an architecture, with defaults that fit GPT-2 and most models of transformers.

    Subclass it for an architecture of your own and override what differs.
    """

    position_names: tuple[str, ...] = ("wpe",)
    """Parts of the names of position embeddings: they cost no FLOPs and do not decay."""
    extra_names: tuple[str, ...] = ("future_heads.",)
    """Starts of the names of parameters that an objective uses, which counts their FLOPs."""

    def shape(self, model: nn.Module) -> Shape:
        """Return the size of the model, from its `config` as transformers names it."""
        config = getattr(model, "config", None)
        vocabulary = getattr(config, "vocab_size", None)
        if not vocabulary:
            embeddings = [one for one in model.modules() if isinstance(one, nn.Embedding)]
            vocabulary = max((one.num_embeddings for one in embeddings), default=None)
        return Shape(
            layers=getattr(config, "num_hidden_layers", None),
            width=getattr(config, "hidden_size", None),
            heads=getattr(config, "num_attention_heads", None),
            vocabulary=None if vocabulary is None else int(vocabulary),
        )

    def usual_lr(self, model: nn.Module) -> float:
        """Return the learning rate that usually suits a model of this width; NaN if unknown.

        It is a rule of thumb for AdamW, `USUAL_RATE` ÷ width: a prior, not a recommendation.
        """
        width = self.shape(model).width
        return USUAL_RATE / width if width else math.nan

    def is_position(self, name: str) -> bool:
        """Return True if the parameter of this name embeds positions."""
        return any(part in name for part in self.position_names)

    def decays(self, name: str, parameter: Tensor) -> bool:
        """Return True if weight decay applies: to matrices, not to biases, norms and positions."""
        return parameter.dim() >= 2 and not self.is_position(name)

    def flops_per_token(self, model: nn.Module, context: int | None = None) -> float:
        """Return the FLOPs of a forward and backward pass for one token; at least 6.

        Each parameter counts once; position embeddings and the heads of an objective do not. The
        attention term needs a known shape and the context length in tokens, and is left out without
        them.
        """
        parameters = sum(
            p.numel()
            for name, p in model.named_parameters()
            if not (self.is_position(name) or name.startswith(self.extra_names))
        )
        shape = self.shape(model)
        return transformer_flops(
            max(1, parameters),
            layers=shape.layers or 0,
            width=shape.width or 0,
            context=context or 0,
        )

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """Return the blocks that the probe observes: the members of the longest `nn.ModuleList`."""
        lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
        return max(lists, key=len, default=[])

    def embedding(self, model: nn.Module) -> nn.Module | None:
        """Return the token embedding, None if there is none."""
        return next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)

    def attention(self, block: nn.Module) -> tuple[nn.Module, Heads] | None:
        """Return the projection that computes queries and keys, and how to split its output.

        None if the attention of this architecture cannot be observed: its entropy is then NaN. The
        default finds GPT-2's fused query–key–value projection.
        """
        attention = getattr(block, "attn", None)
        fused = getattr(attention, "c_attn", None)
        heads = getattr(attention, "num_heads", None)
        if not isinstance(fused, nn.Module) or heads is None:
            return None

        def split(output: Tensor) -> tuple[Tensor, Tensor]:
            queries, keys, _ = (
                part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in output.chunk(3, dim=-1)
            )
            return queries, keys

        return fused, split


DEFAULT = ModelSpec()


def spec_of(model: nn.Module) -> ModelSpec:
    """Return the model's own `spec`, or the default one."""
    spec = getattr(model, "spec", None)
    if isinstance(spec, ModelSpec):
        return spec
    return DEFAULT


def transformer_flops(parameters: int, *, layers: int, width: int, context: int) -> float:
    """Return 6N + 12·L·W·T, the training FLOPs of one token (Chowdhery 2022, PaLM, appendix B)."""
    return 6.0 * parameters + 12.0 * layers * width * context
