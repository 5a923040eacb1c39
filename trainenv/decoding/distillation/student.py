"""A student: a copy of the target with few of its blocks, to be distilled into a draft."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from torch import nn

from trainenv.tools.checks import whole
from trainenv.types import UserError


def student_of(target: nn.Module, layers: int) -> nn.Module:
    """Return a model with evenly spaced blocks of the target, the first and the last among them.

    Embeddings, last norm and output head have the target's width and weights, so that all shapes
    fit and nothing is learned from random numbers. The copy shares no memory with the target.

    Args:
        target: Causal LM of transformers with one list of blocks.
        layers: Number of blocks of the student, at least 1 and fewer than the target has.

    Raises:
        UserError: The target has no such blocks.
    """
    whole("layers", layers, least=1)
    student = copy.deepcopy(target)
    blocks = blocks_of(student)
    if layers >= len(blocks):
        raise UserError(
            f"layers must be below the number of blocks of the target ({len(blocks)}), found "
            f"{layers}; take fewer"
        )
    kept = [blocks[place] for place in chosen(len(blocks), layers)]
    del blocks[:]
    blocks.extend(kept)
    for place, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):  # the place of its keys and values in the cache
                module.layer_idx = place  # type: ignore[assignment]
    config: Any = getattr(student, "config", None)
    if config is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    _forget_quantization(student, config)
    return student


def _forget_quantization(student: nn.Module, config: Any) -> None:
    """Let a student be saved whose target was read from quantized weights, such as a GGUF file.

    The weights are ordinary floats after reading, but transformers refuses to save such a model.
    """
    vars(student).pop("hf_quantizer", None)
    vars(student).pop("is_quantized", None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config


def chosen(blocks: int, layers: int) -> list[int]:
    """Return the indices of the blocks that a student of some layers takes."""
    if layers == 1:
        return [0]
    return [int(place) for place in np.linspace(0, blocks - 1, layers).round()]


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the longest list of modules of a model; an empty one if it has none."""
    return max(
        (module for module in model.modules() if isinstance(module, nn.ModuleList)),
        key=len,
        default=nn.ModuleList(),
    )


def freeze_embeddings(student: nn.Module) -> list[nn.Parameter]:
    """Freeze input and output embeddings, and return the parameters that learn.

    A few ten thousand tokens of text have few of the rare words; those keep the target's vectors.
    """
    model: Any = student
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        if embeddings is not None:
            for parameter in embeddings.parameters():
                parameter.requires_grad_(False)
    return [parameter for parameter in student.parameters() if parameter.requires_grad]
