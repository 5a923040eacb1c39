"""Tokens that one head predicts, as a weighting sees them, and the contract of a weighting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Tokens that one head predicts in a micro-batch of length T.

    Entry [b, t] is the token that head k predicts from place t, which is at place t + 1 + k.

    Attributes:
        head: Number of the head, k.
        loss: Cross-entropy of the head, float32 [B, T − k] in nats, without gradients; 0 where not
            valid.
        valid: True where there is a label, bool [B, T − k].
        reference: Cross-entropy of the reference model for the same tokens, float32 [B, T − k] in
            nats; None without a reference.
        advantage: Advantage of the same tokens, float32 [B, T − k]; None without a value head.
        generator: Random numbers of this micro-batch and head, on the CPU.
    """

    head: int
    loss: Tensor
    valid: Tensor
    reference: Tensor | None = None
    advantage: Tensor | None = None
    generator: torch.Generator

    @property
    def excess(self) -> Tensor:
        """Cross-entropy less that of the reference, float32 [B, T − k]; signed."""
        assert self.reference is not None
        return self.loss - self.reference

    def random(self) -> Tensor:
        """Return uniform random numbers from 0 to 1, [B, T − k]."""
        drawn = torch.rand(self.loss.shape, generator=self.generator)
        return drawn.to(self.loss.device)


class Weighting(Protocol):
    """Rule that gives each token of each head a weight.

    `MTP` calls `weights` once for each head of each micro-batch. A weighting is a frozen dataclass
    of hyperparameters without state.
    """

    @property
    def needs_value(self) -> bool:
        """True if `Targets.advantage` must be there."""
        ...

    @property
    def needs_reference(self) -> bool:
        """True if `Targets.reference` must be there."""
        ...

    @property
    def divides_by_weights(self) -> bool:
        """True if the loss of a head is Σ w·CE ÷ Σ w, False for Σ w·CE ÷ number of labels."""
        ...

    def weights(self, targets: Targets, /) -> Tensor | None:
        """Return weights, float32 [B, T − k], 0 where not valid; None for a plain mean."""
        ...


def highest(scores: Tensor, valid: Tensor, share: float) -> Tensor:
    """Return a mask of the highest scores: exactly the share of the valid entries, rounded.

    Of equal scores the earlier entry is chosen. Nothing is read from the device.

    Args:
        scores: Scores, [B, T].
        valid: Entries that may be chosen, bool [B, T].
        share: Share of the valid entries that is chosen, 0 to 1.
    """
    flat = torch.where(valid, scores.nan_to_num(-math.inf, math.inf, -math.inf), -math.inf)
    order = flat.flatten().argsort(descending=True, stable=True)
    # Valid entries first, also where their score is −∞.
    order = order[(~valid.flatten()[order]).to(torch.uint8).argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    count = (valid.sum() * share + 0.5).floor()
    return (rank.view(scores.shape) < count) & valid
