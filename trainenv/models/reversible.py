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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import GPT2Config
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2PreTrainedModel

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
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.recompute = True
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList(ReversibleBlock(config, n) for n in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.post_init()

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
            parameters = [p for half in halves for p in half.parameters]
            draws = any(block.draws for block in blocks)
            one, two = _Reversible.apply(halves, draws, start, *parameters)
        else:
            streams = torch.cat([start, start], dim=-1)  # (B, T, 2W)
            for block in self.blocks:
                streams = block(streams)
            one, two = streams.chunk(2, dim=-1)
        hidden = self.ln_f(((one + two) / 2).to(self.ln_f.weight.dtype))
        return CausalLMOutputWithCrossAttentions(logits=F.linear(hidden, self.wte.weight))


class _Reversible(torch.autograd.Function):
    """All blocks of a model as one function, which keeps nothing but its outputs.

    With dropout it also keeps the random state before each half: 5 KB each on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, halves: Sequence[Half], draws: bool, start: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return both streams after the blocks, [B, T, W] each.

        Args:
            ctx: Context of the backward pass.
            halves: Halves of all blocks, in their order.
            draws: True if the blocks draw random numbers.
            start: Both streams before the blocks, [B, T, W].
            parameters: Trained parameters of the halves, in their order.
        """
        device = start.device
        states: list[Tensor] = []
        changed = start
        read = start
        for half in halves:
            if draws:
                states += _random_states(device)
            changed, read = read, changed + half.added(read)
        ctx.halves = halves
        ctx.autocast = torch.is_autocast_enabled(device.type)
        ctx.dtype = torch.get_autocast_dtype(device.type)
        ctx.save_for_backward(changed, read, *states)
        return changed, read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, changed_grad: Tensor, read_grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients of the start and of the parameters."""
        changed, read, *states = ctx.saved_tensors
        kind = changed.device.type
        count = len(states) // len(ctx.halves)  # random states of each half
        found: list[Sequence[Tensor | None]] = []
        for place, half in reversed(list(enumerate(ctx.halves))):
            before = changed.detach().requires_grad_()
            with (
                torch.enable_grad(),
                # Without its cache, which may hold casts of weights that carry no gradient.
                torch.autocast(kind, dtype=ctx.dtype, enabled=ctx.autocast, cache_enabled=False),
                _replayed(states[place * count : (place + 1) * count], changed.device),
            ):
                added = half.added(before)
            of_input, *of_parameters = torch.autograd.grad(
                added, [before, *half.parameters], read_grad.to(added.dtype), allow_unused=True
            )
            found.append(of_parameters)
            changed, read = read - added.detach(), changed
            changed_grad, read_grad = read_grad, changed_grad + of_input
        parameters = [gradient for of_half in reversed(found) for gradient in of_half]
        return None, None, changed_grad + read_grad, *parameters


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
