"""Model of a configuration, checked against the free memory before it is built."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from trainenv.config.schema import RunConfig
from trainenv.models.segments import root_segment
from trainenv.models.spec import transformer_flops
from trainenv.objectives.span_corruption import Lengths, SpanCorruption, lengths_for, lengths_of
from trainenv.tools.rng import seeded
from trainenv.types import UserError

if TYPE_CHECKING:
    from transformers import GPT2Config, PreTrainedModel


def build(config: RunConfig, vocab_size: int, device: torch.device) -> PreTrainedModel:
    """Return a freshly initialised model, a pure function of the configuration (`seed` included).

    Args:
        config: Configuration of the run.
        vocab_size: Number of tokens of the text.
        device: Device of the model.

    Raises:
        UserError: The run would need more memory than the device has free.
    """
    check_memory(config, vocab_size, device)
    make: Callable[[RunConfig, int], PreTrainedModel] = _gpt2
    if config.model.architecture == "t5":
        make = _t5
    elif config.model.blocks == "reversible":
        make = _reversible
    with seeded(config.seed):
        model: Any = make(config, vocab_size)
    mode = config.model.activation_checkpointing
    if mode == "sqrt":
        model.segment = root_segment(config.model.layers)
    elif mode:
        enable = getattr(model, "activation_checkpointing_enable", None)
        if enable is None:  # the older name, which transformers 5.23 deprecated
            enable = model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model.to(device)
    model.train()
    built: PreTrainedModel = model
    return built


def _gpt2(config: RunConfig, vocab_size: int) -> PreTrainedModel:
    from trainenv.models.gpt2 import GPT2

    model = GPT2(_gpt2_config(config, vocab_size))
    if config.model.init == "stable":
        model.transformer.wte = _initialised_stably(model, model.transformer.wte)
    return model


def _reversible(config: RunConfig, vocab_size: int) -> PreTrainedModel:
    from trainenv.models.reversible import ReversibleGPT2

    model = ReversibleGPT2(_gpt2_config(config, vocab_size))
    if config.model.init == "stable":
        model.wte = _initialised_stably(model, model.wte)
    return model


def _gpt2_config(config: RunConfig, vocab_size: int) -> GPT2Config:
    from transformers import GPT2Config

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
    return GPT2Config(**settings)


def _t5(config: RunConfig, vocab_size: int) -> PreTrainedModel:
    from transformers import T5Config

    from trainenv.models.t5 import ATTENTION, T5, T5Spec

    shape = config.model
    task = span_corruption(config, vocab_size)
    lengths = span_lengths(config)
    settings: dict[str, Any] = {
        "vocab_size": task.vocabulary,
        "d_model": shape.width,
        "d_kv": shape.width // shape.heads,
        "d_ff": 4 * shape.width,
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "dropout_rate": shape.dropout,
        "pad_token_id": task.start,
        "decoder_start_token_id": task.start,
        "eos_token_id": task.end,
        "use_cache": False,
        "attn_implementation": ATTENTION,
    }
    spec = T5Spec(inputs=lengths.inputs, targets=lengths.targets)
    return T5(T5Config(**settings), spec=spec)


def text_length(config: RunConfig) -> int:
    """Return the tokens that a sequence advances in its text: one less than are cut for it."""
    if config.model.architecture == "t5":
        return span_lengths(config).tokens - 1
    return config.model.context


def span_lengths(config: RunConfig) -> Lengths:
    """Return the numbers of tokens of a T5's training sequence.

    Raises:
        UserError: The context is too short for span corruption.
    """
    task = config.span_corruption
    return lengths_for(config.model.context, task.share, task.mean_span)


def span_corruption(config: RunConfig, vocab_size: int) -> SpanCorruption:
    """Return the objective of a T5, with a sentinel for each span of its longest sequence.

    Args:
        config: Configuration of the run.
        vocab_size: Number of tokens of the text.
    """
    task = config.span_corruption
    longest = (span_lengths(config).tokens - 1) * _long_factor(config) + 1
    sentinels = lengths_of(longest, task.share, task.mean_span).spans
    return SpanCorruption(
        text_vocabulary=vocab_size,
        sentinels=sentinels,
        share=task.share,
        mean_span=task.mean_span,
    )


def positions(config: RunConfig) -> int:
    """Return the number of positions that the model embeds: its longest sequence."""
    longest = config.model.context * _long_factor(config)
    if config.model.positions is None:
        return longest
    if config.model.positions < longest:
        raise UserError(
            f"model.positions must be at least {longest} for long sequences (context × "
            "stressors.long_factor), "
            f"found {config.model.positions}; raise it or leave it out"
        )
    return config.model.positions


def _long_factor(config: RunConfig) -> int:
    """Return the factor by which sequences may get longer; 1 without that stressor."""
    if config.stressors.lengthens:
        return config.stressors.long_factor
    return 1


def parameter_count(config: RunConfig, vocab_size: int) -> int:
    """Return the number of parameters; the output layer shares the token embedding.

    The heads of the objective are counted, a value head is not.

    Args:
        config: Configuration of the run.
        vocab_size: Number of tokens of the text.
    """
    shape = config.model
    width = shape.width
    if shape.architecture == "t5":
        from trainenv.models.t5 import t5_parameters

        vocabulary = span_corruption(config, vocab_size).vocabulary
        return t5_parameters(
            layers=shape.layers, width=width, heads=shape.heads, vocabulary=vocabulary
        )
    embeddings = (vocab_size + positions(config)) * width
    block = 12 * width**2 + 13 * width
    heads = 0
    if config.objective.kind == "mtp":
        head = block if config.objective.head == "block" else width**2
        heads = (config.objective.heads - 1) * head
    return embeddings + shape.layers * block + 2 * width + heads


def sequence_flops(config: RunConfig, vocab_size: int) -> float:
    """Return the FLOPs of a forward and backward pass over one sequence, as a run counts them.

    Args:
        config: Configuration of the run.
        vocab_size: Number of tokens of the text.
    """
    shape = config.model
    if shape.architecture == "t5":
        from trainenv.models.t5 import t5_flops

        lengths = span_lengths(config)
        return t5_flops(
            layers=shape.layers,
            width=shape.width,
            vocabulary=span_corruption(config, vocab_size).vocabulary,
            inputs=lengths.inputs,
            targets=lengths.targets,
        )
    parameters = parameter_count(config, vocab_size) - positions(config) * shape.width
    per_token = transformer_flops(
        parameters, layers=shape.layers, width=shape.width, context=shape.context
    )
    return shape.context * per_token


def memory_needed(config: RunConfig, vocab_size: int) -> int:
    """Return a lower estimate of the memory of a run in bytes.

    It counts fp32 weights, gradients and two moments, and the activations of one micro-batch.

    Args:
        config: Configuration of the run.
        vocab_size: Number of tokens of the text.
    """
    shape = config.model
    rows = config.batch_size // config.accumulation
    tokens = rows * shape.context
    predicted = tokens
    if shape.architecture == "t5":
        predicted = rows * span_lengths(config).targets
        tokens += predicted
    size = 2
    if config.precision == "fp32":
        size = 4
    state = shape.width * size  # between two blocks, per token
    layer = 16 * state  # inputs kept for the backward pass of one block, per token
    kept = layer * shape.layers
    if shape.blocks == "reversible":
        kept = 2 * 8 * shape.width + layer  # two streams of float64
    elif shape.activation_checkpointing:
        segment = 1
        if shape.activation_checkpointing == "sqrt":
            segment = root_segment(shape.layers)
        kept = state * math.ceil(shape.layers / segment) + layer * segment
    activations = tokens * kept + predicted * 8 * vocab_size
    return 16 * parameter_count(config, vocab_size) + activations


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


def _initialised_stably(model: PreTrainedModel, embedding: nn.Embedding) -> nn.Embedding:
    """Initialise with small sub-layers and a large shortcut (Takase 2024).

    σ = √(2 / 5d), output projections × 1/√(2N), embeddings × √d.

    Returns:
        Scaled embedding to put in place of the given one, whose weights it shares.
    """
    width = embedding.embedding_dim
    layers = model.config.n_layer
    std = math.sqrt(2 / (5 * width))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(
                parameter,
                std=std / math.sqrt(2 * layers) if name.endswith("c_proj.weight") else std,
            )
    from trainenv.models.gpt2 import ScaledEmbedding

    scaled = ScaledEmbedding(embedding.num_embeddings, width)
    scaled.weight = embedding.weight
    return scaled
