"""GPT-2 from transformers, built from a `ModelConfig` and checked against the free memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from trainenv.config.schema import RunConfig
from trainenv.tools.rng import seeded
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.models.gpt2 import GPT2


def build(config: RunConfig, vocab_size: int, device: torch.device) -> GPT2:
    """Return a freshly initialised GPT-2, a pure function of the configuration (`seed` included).

    Raises:
        UserError: The run would need more memory than the device has free.
    """
    check_memory(config, vocab_size, device)
    from transformers import GPT2Config

    from trainenv.models.gpt2 import GPT2

    shape = config.model
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "n_positions": positions(config),
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        # The tanh form in one kernel: the same function as GPT-2's `gelu_new`, and the whole step
        # 1.1 to 1.3 times faster.
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": shape.dropout,
        "embd_pdrop": shape.dropout,
        "attn_pdrop": shape.dropout,
        "bos_token_id": vocab_size - 1,
        "eos_token_id": vocab_size - 1,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }

    with seeded(config.seed):
        model = GPT2(GPT2Config(**settings))
        if shape.init == "stable":
            _initialise_stably(model)
    if shape.activation_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)
        if enable is None:  # the older name, which transformers 5.23 deprecated
            enable = model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model.to(device)  # type: ignore[arg-type]  # transformers' annotation of `to` is off
    model.train()
    return model


def positions(config: RunConfig) -> int:
    """Return the number of positions that the model embeds: its longest sequence."""
    longest = config.model.context * (
        config.stressors.long_factor if config.stressors.lengthens else 1
    )
    if config.model.positions is None:
        return longest
    if config.model.positions < longest:
        raise UserError(
            f"model.positions must be at least {longest} for long sequences (context × "
            "stressors.long_factor), "
            f"found {config.model.positions}; raise it or leave it out"
        )
    return config.model.positions


def parameter_count(config: RunConfig, vocab_size: int) -> int:
    """Return the number of parameters; the output layer shares the token embedding.

    The heads of the objective are counted, a value head is not.
    """
    width = config.model.width
    layers = config.model.layers
    block = 12 * width**2 + 13 * width
    heads = 0
    if config.objective.kind == "mtp":
        head = block if config.objective.head == "block" else width**2
        heads = (config.objective.heads - 1) * head
    return (vocab_size + positions(config)) * width + layers * block + 2 * width + heads


def memory_needed(config: RunConfig, vocab_size: int) -> int:
    """Return a lower estimate of the memory of a run in bytes.

    It counts fp32 weights, gradients and two moments, and the activations of one micro-batch.
    """
    shape = config.model
    tokens = config.batch_size // config.accumulation * shape.context
    size = 2
    if config.precision == "fp32":
        size = 4
    layer = 16 * shape.width * size  # inputs kept for the backward pass of one block, per token
    activations = (
        shape.width * size * shape.layers + layer
        if shape.activation_checkpointing
        else layer * shape.layers
    )
    return 16 * parameter_count(config, vocab_size) + tokens * (activations + 8 * vocab_size)


def check_memory(config: RunConfig, vocab_size: int, device: torch.device) -> None:
    """Refuse a run that cannot fit, before anything is allocated."""
    needed = memory_needed(config, vocab_size)
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    if needed > free:
        raise UserError(
            f"{config.name} needs at least {needed / 2**30:.1f} GiB of memory on {device.type}, "
            f"found {free / 2**30:.1f} GiB free; take a smaller preset, a larger accumulation, or "
            "model.activation_checkpointing: true"
        )


def _initialise_stably(model: GPT2) -> None:
    """Initialise with small sub-layers and a large shortcut (Takase 2024).

    σ = √(2 / 5d), output projections × 1/√(2N), embeddings × √d.
    """
    width = model.config.n_embd
    layers = model.config.n_layer
    std = math.sqrt(2 / (5 * width))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(
                parameter,
                std=std / math.sqrt(2 * layers) if name.endswith("c_proj.weight") else std,
            )
    from trainenv.models.gpt2 import ScaledEmbedding

    embedding = ScaledEmbedding(model.config.vocab_size, width)
    embedding.weight = model.transformer.wte.weight
    model.transformer.wte = embedding
