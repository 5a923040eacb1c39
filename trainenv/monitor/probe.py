"""A look inside the model on a small clean set of sequences: entropies and the diagnostics of the stability literature.

A corrupted batch has a high loss of its own, so harm is judged here, on data that never changes.
Entropies are shares of their maximum, in [0, 1]. Attention collapse (Zhai 2023) shows as falling
attention entropy; dying or exploding features as falling activation entropy; the two conditions of
Takase 2024 as `embedding_rms` (shortcut too small below about 1) and `shortcut_ratio` (sub-layers
too large when it falls).
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

_QUERIES = 16

PROBE_FIELDS = (
    "probe_loss",
    "attention_entropy",
    "activation_entropy",
    "embedding_rms",
    "shortcut_ratio",
)


class Probe:
    """Measures a model on fixed sequences with forward hooks that exist only while it looks.

    Attention entropy needs GPT-2's fused `c_attn` projections; for other models it is NaN. Blocks
    are the members of the model's longest `nn.ModuleList`.

    Args:
        model: the model that is looked at, never changed.
        tokens: the probe set, as one micro-batch of the objective.
        loss: the loss of a micro-batch, as the run computes it.

    Attributes:
        activations: float32 [blocks, 2] on the model's device: mean and standard deviation of each
            block's output when it last looked, over the positions that the activation entropy is
            taken at. None before, and where no block has a shortcut.
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
        """The fields of `PROBE_FIELDS` as 0-dimensional float32 tensors on the model's device; NaN where not measurable."""
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
        self.activations = torch.stack(seen.moments) if seen.moments else None
        nan = torch.full((), math.nan, device=loss.device)
        return {
            "probe_loss": loss.float(),
            "attention_entropy": torch.stack(seen.attention).mean() if seen.attention else nan,
            "activation_entropy": torch.stack(seen.activation).mean() if seen.activation else nan,
            "embedding_rms": seen.embedding if seen.embedding is not None else nan,
            "shortcut_ratio": torch.stack(seen.shortcut).mean() if seen.shortcut else nan,
        }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode inside the block; after it every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Seen:
    """What the hooks of one look collect, a 0-dimensional tensor a layer."""

    def __init__(self) -> None:
        self.attention: list[Tensor] = []
        self.activation: list[Tensor] = []
        self.moments: list[Tensor] = []
        self.shortcut: list[Tensor] = []
        self.embedding: Tensor | None = None

    def block(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # (B, T, W)
        before = inputs[0] if inputs else None
        after = output[0] if isinstance(output, tuple) else output
        if (
            not isinstance(before, Tensor)
            or not isinstance(after, Tensor)
            or before.shape != after.shape
        ):
            return  # no block with a shortcut around it
        before = before.float()
        after = after.float()
        every = max(1, after.shape[1] // _QUERIES) if after.dim() == 3 else 1
        hidden = after[:, every - 1 :: every]
        self.activation.append(activation_entropy(hidden))
        deviation, mean = torch.std_mean(hidden, correction=0)
        self.moments.append(torch.stack([mean, deviation]))
        self.shortcut.append(before.norm() / (after - before).norm())

    def projected(
        self, split: Heads, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> None:
        self.attention.append(attention_entropy(*split(output)))

    def embedded(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.embedding = output.float().square().mean().sqrt()


def attention_entropy(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean entropy of causal attention over [B, H, T, D] queries and keys, each position's as a share of ln(position + 1).

    Of long sequences only `_QUERIES` positions, evenly spaced up to the last, are looked at: the
    cost stays linear in T.
    """
    length = queries.shape[-2]
    stride = max(1, length // _QUERIES)
    positions = torch.arange((length - 1) % stride, length, stride, device=queries.device)
    positions = positions[positions > 0]  # the first position has no choice
    scores = queries[..., positions, :].float() @ keys.float().transpose(-1, -2)  # (B, H, Q, T)
    scores = scores / math.sqrt(queries.shape[-1])
    hidden = torch.arange(length, device=queries.device) > positions[:, None]  # (Q, T)
    p = torch.softmax(scores.masked_fill_(hidden, -math.inf), dim=-1)
    entropy = torch.special.entr(p).sum(-1)  # (B, H, Q)
    mean: Tensor = (entropy / (positions + 1).log()).mean()
    return mean


def activation_entropy(hidden: Tensor) -> Tensor:
    """Mean entropy of how the energy of [B, T, W] activations is spread over the W features, as a share of ln W."""
    energy = hidden.square()
    p = energy / energy.sum(-1, keepdim=True).clamp_min(1e-30)
    share: Tensor = torch.special.entr(p).sum(-1).mean() / math.log(hidden.shape[-1])
    return share
