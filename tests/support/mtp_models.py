"""Tiny causal language models with future heads, and micro-batches of labelled samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from trainenv.models import add_heads
from trainenv.models.gpt2 import GPT2
from trainenv.objectives.weightings.targets import Targets

VOCABULARY = 23
WIDTH = 16


def gpt2(*, heads: int = 4, kind: Any = "block", value: bool = False, seed: int = 0) -> nn.Module:
    """Build a GPT-2 with tied embeddings."""
    torch.manual_seed(seed)
    shape = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 16}
    dropout = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=VOCABULARY, use_cache=False, **shape, **dropout, **ids)
    return _with_heads(GPT2(config), heads, kind, value)


def llama(*, tied: bool = False, heads: int = 4, kind: Any = "block") -> nn.Module:
    """Build a Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return _with_heads(LlamaForCausalLM(config), heads, kind, False)


def _with_heads(model: nn.Module, heads: int, kind: Any, value: bool) -> nn.Module:
    made = add_heads(model, heads=heads, kind=kind, value=value)
    for parameter in made.parameters():  # heads that differ from each other
        with torch.no_grad():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tokens(rows: int = 3, length: int = 9, seed: int = 0) -> Tensor:
    """Draw tokens [rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (rows, length), generator=generator)


def samples(rows: int = 4, length: int = 9, seed: int = 0) -> dict[str, Tensor]:
    """Draw labelled samples: prompts of 2 tokens, solutions of different lengths, rewards."""
    drawn = tokens(rows, length, seed)
    labels = drawn.clone()
    labels[:, :2] = -100
    for row in range(rows):
        labels[row, length - row % 3 :] = -100
    reward = torch.tensor([float(row % 2) for row in range(rows)])
    return {"tokens": drawn, "labels": labels, "reward": reward}


def targets(
    loss: Tensor,
    valid: Tensor | None = None,
    *,
    head: int = 1,
    reference: Tensor | None = None,
    advantage: Tensor | None = None,
    seed: int = 0,
) -> Targets:
    """Return the targets of a head with given losses."""
    return Targets(
        head=head,
        loss=loss,
        valid=torch.ones_like(loss, dtype=torch.bool) if valid is None else valid,
        reference=reference,
        advantage=advantage,
        generator=torch.Generator().manual_seed(seed),
    )
