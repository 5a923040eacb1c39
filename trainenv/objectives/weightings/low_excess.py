"""Selection at or below a quantile of the excess loss: a mistaken form of Rho-1, to compare with.

threshold = quantile(excess, 1 − k); w = 1 where excess ≤ threshold. With k = 60 % it keeps the
lowest 40 %: the tokens that the model knows already, and those that are noise to it and to the
reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainenv.objectives.weightings.targets import Targets
from trainenv.tools.checks import number


@dataclass(frozen=True, kw_only=True)
class LowExcess:
    """Weight 1 for the tokens with an excess loss up to the quantile 1 − kept_share.

    Args:
        kept_share: One less the quantile, above 0 and at most 1.
    """

    kept_share: float = 0.6

    needs_value: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    divides_by_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("kept_share", self.kept_share, above=0, most=1)

    def weights(self, targets: Targets, /) -> Tensor:
        """Return the weights of a head, float32 [B, T − k]; those of head 0 are 1."""
        if targets.head == 0:
            return targets.valid.float()
        excess = torch.where(targets.valid, targets.excess, torch.nan)
        threshold = excess.flatten().nanquantile(1 - self.kept_share)
        return (targets.valid & (targets.excess <= threshold)).float()
