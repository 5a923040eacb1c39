"""Uniform weights: plain multi-token prediction (Gloeckle 2024, "Better & Faster Large Language
Models via Multi-token Prediction").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trainenv.objectives.weightings.targets import Targets


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Weight 1 for each token of each head."""

    needs_value: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    divides_by_weights: ClassVar[bool] = True

    def weights(self, targets: Targets, /) -> Tensor | None:
        """Return None: the loss of a head is the plain mean."""
        return None
