"""Random selection: a control for Rho-1 with the same share of tokens and no reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trainenv.objectives.weightings.targets import Targets, highest
from trainenv.tools.checks import number


@dataclass(frozen=True, kw_only=True)
class RandomSelection:
    """Weight 1 for tokens chosen at random, as many as Rho-1 chooses.

    Args:
        kept_share: Share of the labelled tokens that each head keeps, above 0 and at most 1.
        keep_head_0: True to keep all tokens of head 0.
    """

    kept_share: float = 0.6
    keep_head_0: bool = True

    needs_value: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    divides_by_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("kept_share", self.kept_share, above=0, most=1)

    def weights(self, targets: Targets, /) -> Tensor:
        """Return the weights of a head, float32 [B, T − k]."""
        if targets.head == 0 and self.keep_head_0:
            return targets.valid.float()
        return highest(targets.random(), targets.valid, self.kept_share).float()
