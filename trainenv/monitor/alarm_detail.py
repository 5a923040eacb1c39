"""The inside of a model at an alarm: gradient norms by layer, and the largest attention logit.

Clip policies compute the norm of each tensor's gradient anyway. Those of the steps since the last
read are kept on the device, and read only where an alarm asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trainenv.distributed.shards import named_parameters_of
from trainenv.models.spec import Heads, spec_of

_Step = tuple[Tensor, tuple[int, ...] | None]  # norms, and the places of their parameters


@runtime_checkable
class Diagnosed(Protocol):
    """A run that can tell more about an alarm."""

    def diagnosis(self, step: int, /) -> dict[str, Any]:
        """Return details of an alarm at a step of the last block as JSON values; may be empty."""
        ...


class LayerNorms:
    """Gradient norms by tensor of the steps since the last read, kept on the device."""

    def __init__(self) -> None:
        self._unread: dict[int, _Step] = {}
        self._block: dict[int, _Step] = {}

    def append(self, step: int, norms: Tensor | None, parameters: Sequence[Tensor]) -> None:
        """Keep the norms of a step; nothing is computed, copied or read.

        Args:
            step: Number of completed steps, this one included.
            norms: Norm of each gradient, [tensors]; None where the clip policy has none.
            parameters: Trained parameters, with the gradients of the step.
        """
        if norms is None:
            return
        places = None
        if len(norms) != len(parameters):
            places = tuple(n for n, p in enumerate(parameters) if p.grad is not None)
        self._unread[step] = (norms, places)

    def close_block(self) -> None:
        """Take the steps since the last call as the block that is asked for."""
        self._block = self._unread
        self._unread = {}

    def of(self, step: int, layers: Sequence[str]) -> dict[str, Any]:
        """Return the norms at a step of the block, by layer.

        Args:
            step: Step of an alarm.
            layers: Name of the layer of each trained parameter.

        Returns:
            `layers`, the norm of each layer; `layer`, the one whose norm is the largest multiple of
            its median over the other steps of the block, or the largest where there are none; and
            `layer_ratio`, that multiple, null without other steps. Empty if nothing is known.
        """
        if step not in self._block:
            return {}
        found = {name: self._by_layer(name, layers) for name in self._block}
        here = found.pop(step)
        ratios = {}
        for layer, norm in here.items():
            others = sorted(norms[layer] for norms in found.values() if layer in norms)
            if others and others[len(others) // 2] > 0:
                ratios[layer] = norm / others[len(others) // 2]
        by = ratios or here
        # A norm that is no number is the oddest of all.
        layer = max(by, key=lambda name: by[name] if math.isfinite(by[name]) else math.inf)
        return {"layers": here, "layer": layer, "layer_ratio": ratios.get(layer)}

    def _by_layer(self, step: int, layers: Sequence[str]) -> dict[str, float]:
        norms, places = self._block[step]
        squares: dict[str, float] = {}
        for place, norm in zip(places or range(len(layers)), norms.tolist()):
            squares[layers[place]] = squares.get(layers[place], 0.0) + norm * norm
        return {layer: math.sqrt(square) for layer, square in squares.items()}


def layer_names(model: nn.Module, parameters: Sequence[Tensor]) -> list[str]:
    """Return the name of the layer of each parameter: its block, or else its module."""
    blocks = {id(block) for block in spec_of(model).blocks(model)}
    inside = [name for name, module in model.named_modules() if id(module) in blocks]
    names = {id(p): name for name, p in named_parameters_of(model)}
    found = []
    for parameter in parameters:
        name = names.get(id(parameter), "objective.")
        block = next((one for one in inside if name.startswith(f"{one}.")), None)
        found.append(block or name.rpartition(".")[0] or type(model).__name__)
    return found


@torch.no_grad()
def largest_logits(model: nn.Module, forward: Callable[[], Any]) -> list[float]:
    """Return the largest attention logit of each block in a forward pass, in their order.

    Logits are scaled by 1 ÷ √D, as the softmax gets them, and hidden positions do not count. Empty
    where the attention is unknown to the model's `spec`.

    Args:
        model: Model, with its modes as the pass needs them.
        forward: Function that runs the pass.
    """
    spec = spec_of(model)
    seen: list[Tensor] = []

    def projected(split: Heads, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.append(_largest(*split(output)))

    attentions = [found for block in spec.blocks(model) if (found := spec.attention(block))]
    if not attentions:
        return []
    with ExitStack() as hooks:
        for projection, split in attentions:
            hook = partial(projected, split)
            hooks.callback(projection.register_forward_hook(hook).remove)
        forward()
    return [float(one) for one in seen]


def _largest(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the largest causal logit of queries and keys [B, H, T, D], one head at a time."""
    length = queries.shape[-2]
    hidden = torch.ones(length, length, dtype=torch.bool, device=queries.device).triu(1)
    largest = torch.full((), -math.inf, device=queries.device)
    for head in range(queries.shape[1]):
        logits = queries[:, head].float() @ keys[:, head].float().transpose(-1, -2)  # [B, T, T]
        largest = torch.maximum(largest, logits.masked_fill_(hidden, -math.inf).amax())
    return largest / math.sqrt(queries.shape[-1])
