"""Bytes that autograd keeps for the backward pass of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes of the distinct tensors kept by a forward pass, without the parameters of the model."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in parameters:
            found[pointer] = tensor  # kept alive, so that no other tensor gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*inputs).logits
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())
