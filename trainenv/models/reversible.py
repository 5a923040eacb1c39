"""GPT-2 of reversible blocks (Gomez 2017; for transformers Kitaev 2020, Reformer).

A block adds the attention of one stream to the other, and then the MLP of that one to the first:

    y1 = x1 + Attention(Norm(x2))        x2 = y2 − MLP(Norm(y1))
    y2 = x2 + MLP(Norm(y1))              x1 = y1 − Attention(Norm(x2))

So the inputs of a block follow from its outputs. The forward pass keeps the outputs of the last
block alone, and the backward pass computes the rest again, block by block: the memory of
activations does not grow with the number of blocks.

Deviations from the papers: both streams start as the embedding and are as wide as the model, and
the output layer reads their mean. Streams are float64 where the weights are narrower: a sum and its
difference then lose nothing that the norm, which reads them in the type of the weights, could see.

Importing this module imports transformers; `trainenv.models.build` does so only when a model is
built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GPT2Config
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2PreTrainedModel

from trainenv.types import UserError

STREAM = torch.float64  # type of the two streams


class Half(NamedTuple):
    """One of the two sums of a block.

    Attributes:
        added: Function of the stream that is read, [B, T, W] → what is added to the other stream.
        parameters: Trained parameters of the function.
    """

    added: Callable[[Tensor], Tensor]
    parameters: Sequence[Tensor]


class ReversibleBlock(nn.Module):
    """Block whose inputs can be computed from its outputs.

    Args:
        config: Configuration of the model.
        place: Number of the block, from 0.
    """

    def __init__(self, config: GPT2Config, place: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer_idx=place)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(4 * config.n_embd, config)

    def forward(self, streams: Tensor) -> Tensor:
        """Return the streams [B, T, 2W] after the block; the two lie side by side."""
        one, two = streams.chunk(2, dim=-1)
        one = one + self.attend(two)
        two = two + self.transform(one)
        return torch.cat([one, two], dim=-1)

    def attend(self, stream: Tensor) -> Tensor:
        """Return the sum that the second stream adds to the first one, [B, T, W]."""
        output: Tensor = self.attn(self.ln_1(stream.to(self.ln_1.weight.dtype)))[0]
        return output

    def transform(self, stream: Tensor) -> Tensor:
        """Return the sum that the first stream adds to the second one, [B, T, W]."""
        output: Tensor = self.mlp(self.ln_2(stream.to(self.ln_2.weight.dtype)))
        return output

    def halves(self) -> tuple[Half, Half]:
        """Return both sums of the block, in their order."""
        attention = [*self.ln_1.parameters(), *self.attn.parameters()]
        mlp = [*self.ln_2.parameters(), *self.mlp.parameters()]
        return (
            Half(self.attend, [p for p in attention if p.requires_grad]),
            Half(self.transform, [p for p in mlp if p.requires_grad]),
        )

    @property
    def draws(self) -> bool:
        """True if the block draws random numbers now, for dropout."""
        drops = (module for module in self.modules() if isinstance(module, nn.Dropout))
        return any(drop.training and drop.p > 0 for drop in drops)


class ReversibleGPT2(GPT2PreTrainedModel):
    """GPT-2 whose activations take the memory of one block.

    Args:
        config: Configuration of a GPT-2.

    Attributes:
        recompute: False to keep all activations, which gives the same gradients.

    Raises:
        UserError: The attention is another one than `sdpa`, which is causal without a mask.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        attention = self.config._attn_implementation
        if attention != "sdpa":
            raise UserError(
                f"reversible blocks need the attention sdpa, found {attention}; "
                "leave attn_implementation out"
            )
        self.recompute = True
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList(ReversibleBlock(config, n) for n in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.post_init()
        self._scale_outputs()

    def _scale_outputs(self) -> None:
        """Draw the output projections as GPT-2 does, smaller for more blocks.

        transformers does so for classes of its own alone.
        """
        deviation = self.config.initializer_range / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=deviation)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding, which the output layer shares."""
        return self.wte

    def forward(self, input_ids: Tensor) -> CausalLMOutputWithCrossAttentions:
        """Return logits [B, T, V] for int64 tokens [B, T]."""
        embedded = self.drop(self.wte(input_ids) + self.wpe.weight[: input_ids.shape[1]])
        start = embedded.to(STREAM)  # (B, T, W)
        if self.recompute and torch.is_grad_enabled():
            blocks: list[Any] = list(self.blocks)
            halves: list[Half] = [half for block in blocks for half in block.halves()]
            draws = any(block.draws for block in blocks)
            handed = _Streams()
            one = two = start
            for place, half in enumerate(halves, 1):
                last = place == len(halves)
                written = _Sum.apply(half, handed, last, draws, one, two, *half.parameters)
                one, two = two, written
        else:
            streams = torch.cat([start, start], dim=-1)  # (B, T, 2W)
            for block in self.blocks:
                streams = block(streams)
            one, two = streams.chunk(2, dim=-1)
        hidden = self.ln_f(((one + two) / 2).to(self.ln_f.weight.dtype))
        return CausalLMOutputWithCrossAttentions(logits=F.linear(hidden, self.wte.weight))


@dataclass
class _Streams:
    """The two streams where the backward pass is: what the coming half read, and what it wrote."""

    pair: tuple[Tensor, Tensor] | None = None


class _Sum(torch.autograd.Function):
    """Half of a block, which keeps nothing: its backward pass computes its input again.

    Only the last half keeps both streams. The backward pass hands them down from half to half. With
    dropout, each half also keeps the random state before it, 5 KB on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        half: Half,
        streams: _Streams,
        last: bool,
        draws: bool,
        changed: Tensor,
        read: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        """Return the changed stream, [B, T, W].

        Args:
            ctx: Context of the backward pass.
            half: Half of a block.
            streams: Place by which the backward passes of all halves hand down the streams.
            last: True for the last half of the model.
            draws: True if the model draws random numbers.
            changed: Stream that is changed, [B, T, W].
            read: Stream that is read, [B, T, W].
            parameters: Parameters of the half.
        """
        states: list[Tensor] = []
        if draws:
            states = _random_states(read.device)
        written = changed + half.added(read)
        ends: list[Tensor] = []
        if last:
            ends = [read, written]
        ctx.half = half
        ctx.streams = streams
        ctx.last = last
        ctx.autocast = torch.is_autocast_enabled(read.device.type)
        ctx.dtype = torch.get_autocast_dtype(read.device.type)
        ctx.save_for_backward(*ends, *states)
        return written

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients of the two streams and of the parameters."""
        states = list(ctx.saved_tensors)
        if ctx.last:
            ctx.streams.pair = (states.pop(0), states.pop(0))
        read, written = ctx.streams.pair
        before = read.detach().requires_grad_()
        with (
            torch.enable_grad(),
            # Without its cache, which may hold casts of weights that carry no gradient.
            torch.autocast(
                read.device.type, dtype=ctx.dtype, enabled=ctx.autocast, cache_enabled=False
            ),
            _replayed(states, read.device),
        ):
            added = ctx.half.added(before)
        ctx.streams.pair = (written - added.detach(), read)
        of_read, *of_parameters = torch.autograd.grad(
            added, [before, *ctx.half.parameters], grad.to(added.dtype), allow_unused=True
        )
        return None, None, None, None, grad, of_read, *of_parameters


def _random_states(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that dropout draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


@contextmanager
def _replayed(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Draw from earlier states inside the block, and restore the present ones after it."""
    if not states:
        yield
        return
    now = _random_states(device)
    _set_random_states(states, device)
    try:
        yield
    finally:
        _set_random_states(now, device)


def _set_random_states(states: Sequence[Tensor], device: torch.device) -> None:
    host, *others = states
    torch.set_rng_state(host)
    for state in others:
        torch.cuda.set_rng_state(state, device)
