"""Rho-1: only the tokens that a model can still learn (Lin 2024, "Not All Tokens Are What You
Need").

excess = CE of the model − CE of the reference; a head keeps the highest 60 % of its tokens, and its
loss is Σ w·CE ÷ Σ w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainenv.objectives.weightings.targets import Targets, highest
from trainenv.tools.checks import number


@dataclass(frozen=True, kw_only=True)
class Rho1:
    """Weight 1 for the tokens with the highest excess loss over a reference, 0 for the others.

    Deviation from the paper: head 0 keeps all of its tokens by default, so that next-token
    prediction is trained as usual. `keep_head_0=False` is the paper's form.

    Args:
        kept_share: Share of the labelled tokens that each head keeps, above 0 and at most 1.
        keep_head_0: True to keep all tokens of head 0.
        min_ce_diff: Least excess loss in nats that is kept, against noise; None for no limit.
        temperature: Temperature of the weights among the kept tokens, in nats: w ∝
            exp(excess ÷ temperature), with mean 1. None for equal weights.
    """

    kept_share: float = 0.6
    keep_head_0: bool = True
    min_ce_diff: float | None = None
    temperature: float | None = None

    needs_value: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    divides_by_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("kept_share", self.kept_share, above=0, most=1)
        if self.min_ce_diff is not None:
            number("min_ce_diff", self.min_ce_diff)
        if self.temperature is not None:
            number("temperature", self.temperature, above=0)

    def weights(self, targets: Targets, /) -> Tensor:
        """Return the weights of a head, float32 [B, T − k]."""
        if targets.head == 0 and self.keep_head_0:
            return targets.valid.float()
        excess = targets.excess
        kept = highest(excess, targets.valid, self.kept_share)
        if self.min_ce_diff is not None:
            kept = kept & (excess >= self.min_ce_diff)
        if self.temperature is None:
            return kept.float()
        logits = torch.where(kept, excess / self.temperature, -math.inf)
        shares = logits.flatten().softmax(0).view(excess.shape).nan_to_num(0.0)
        return shares * kept.sum()
