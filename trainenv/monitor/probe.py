"""A clean probe: the loss and the inside of the model on a few sequences that never change.

A corrupted batch has a high loss of its own, so harm is measured on this clean set. Entropies are
shares of their maximum, in [0, 1]. The measurements are diagnostics of the stability literature:

- Attention collapse (Zhai 2023) lowers the attention entropy.
- Dying or exploding features lower the activation entropy.
- The two conditions of Takase 2024: the shortcut is too small if `embedding_rms` is below about 1,
  and sub-layers are too large if `shortcut_ratio` falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainenv.models.spec import Heads, spec_of

_QUERIES = 16  # most positions of a sequence that are measured

PROBE_FIELDS = (
    "probe_loss",
    "attention_entropy",
    "activation_entropy",
    "embedding_rms",
    "shortcut_ratio",
)


class Probe:
    """Measures a model on fixed sequences, with forward hooks that exist only during a measurement.

    `trainenv.models.spec` finds the blocks, the embedding and the projections of the attention. A
    measurement is NaN if the architecture does not have its part.

    Args:
        model: Model to measure; it is not changed.
        tokens: Probe set, as one micro-batch of the objective.
        loss: Function that returns the loss of a micro-batch, as in the run.

    Attributes:
        activations: Mean and standard deviation of the output of each block at the last
            measurement, float32 [blocks, 2] on the device of the model, over the positions of the
            activation entropy. None before the first one, or if no block has a shortcut.
    """

    def __init__(self, model: nn.Module, tokens: Any, loss: Callable[[Any], Tensor]) -> None:
        self._model = model
        self._tokens = tokens
        self._loss = loss
        self.activations: Tensor | None = None
        self._spec = spec_of(model)
        self._blocks = self._spec.blocks(model)
        self._embedding = self._spec.embedding(model)

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """Return `PROBE_FIELDS` as 0-d float32 tensors on the device of the model.

        A field that the model does not have is NaN.
        """
        seen = _Seen()
        with ExitStack() as hooks:
            for block in self._blocks:
                hooks.callback(block.register_forward_hook(seen.block).remove)
                if found := self._spec.attention(block):
                    projection, split = found
                    hook = partial(seen.projected, split)
                    hooks.callback(projection.register_forward_hook(hook).remove)
            if self._embedding is not None:
                hooks.callback(self._embedding.register_forward_hook(seen.embedded).remove)
            hooks.enter_context(evaluating(self._model))
            loss = self._loss(self._tokens)
        self.activations = None
        if seen.moments:
            self.activations = torch.stack(seen.moments)
        return {
            "probe_loss": loss.float(),
            "attention_entropy": _mean(seen.attention, loss.device),
            "activation_entropy": _mean(seen.activation, loss.device),
            "embedding_rms": _mean(seen.embedding, loss.device),
            "shortcut_ratio": _mean(seen.shortcut, loss.device),
        }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode inside the block; then restore the mode of every module."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Seen:
    """The measurements of the hooks, a tensor a layer: 0-d, or [2] for the moments."""

    def __init__(self) -> None:
        self.attention: list[Tensor] = []
        self.activation: list[Tensor] = []
        self.moments: list[Tensor] = []
        self.shortcut: list[Tensor] = []
        self.embedding: list[Tensor] = []

    def block(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Measure the output of a block with a shortcut around it."""
        before = _first(inputs)
        after = _first(output)
        if before is None or after is None or before.shape != after.shape:
            return
        before = before.float()  # [B, T, W]
        after = after.float()
        every = 1
        if after.dim() == 3:
            every = max(1, after.shape[1] // _QUERIES)
        hidden = after[:, every - 1 :: every]
        self.activation.append(activation_entropy(hidden))
        deviation, mean = torch.std_mean(hidden, correction=0)
        self.moments.append(torch.stack([mean, deviation]))
        self.shortcut.append(before.norm() / (after - before).norm())

    def projected(
        self, split: Heads, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> None:
        """Measure the attention of a block from the output of its projection."""
        self.attention.append(attention_entropy(*split(output)))

    def embedded(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Measure the output of the embedding; that of the last call counts."""
        self.embedding = [output.float().square().mean().sqrt()]


def attention_entropy(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the mean entropy of causal attention, each position as a share of ln(position + 1).

    At most about `_QUERIES` positions of a sequence, evenly spaced up to the last, are measured, so
    the cost is linear in T.

    Args:
        queries: Queries, [B, H, T, D].
        keys: Keys, [B, H, T, D].
    """
    length = queries.shape[-2]
    stride = max(1, length // _QUERIES)
    positions = torch.arange((length - 1) % stride, length, stride, device=queries.device)
    positions = positions[positions > 0]  # the first position has no choice
    scores = queries[..., positions, :].float() @ keys.float().transpose(-1, -2)  # [B, H, Q, T]
    scores = scores / math.sqrt(queries.shape[-1])
    hidden = torch.arange(length, device=queries.device) > positions[:, None]  # [Q, T]
    p = torch.softmax(scores.masked_fill_(hidden, -math.inf), dim=-1)
    entropy = torch.special.entr(p).sum(-1)  # [B, H, Q]
    mean: Tensor = (entropy / (positions + 1).log()).mean()
    return mean


def activation_entropy(hidden: Tensor) -> Tensor:
    """Return the mean entropy of the energy over the W features, as a share of ln W.

    Args:
        hidden: Activations, [B, T, W].
    """
    energy = hidden.square()
    p = energy / energy.sum(-1, keepdim=True).clamp_min(1e-30)
    share: Tensor = torch.special.entr(p).sum(-1).mean() / math.log(hidden.shape[-1])
    return share


def _first(values: object) -> Tensor | None:
    """Return a tensor, or the first of a tuple; None if it is no tensor."""
    if isinstance(values, tuple) and values:
        values = values[0]
    if isinstance(values, Tensor):
        return values
    return None


def _mean(values: list[Tensor], device: torch.device) -> Tensor:
    """Return the mean of 0-d tensors; NaN without any."""
    if not values:
        return torch.full((), math.nan, device=device)
    return torch.stack(values).mean()
