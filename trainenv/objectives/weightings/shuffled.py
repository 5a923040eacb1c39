"""Shuffled weights: a control with the weights of another weighting, each at a random token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainenv.objectives.weightings.critic import Critic
from trainenv.objectives.weightings.rho1 import Rho1
from trainenv.objectives.weightings.targets import Targets


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Weights of another weighting, permuted among the labelled tokens of a head.

    Share, mean and distribution of the weights are kept; what they say of a token is lost.

    Args:
        of: Weighting whose weights are permuted.
    """

    of: Rho1 | Critic = field(default_factory=Rho1)

    @property
    def needs_value(self) -> bool:
        """See `Weighting`."""
        return self.of.needs_value

    @property
    def needs_reference(self) -> bool:
        """See `Weighting`."""
        return self.of.needs_reference

    @property
    def divides_by_weights(self) -> bool:
        """See `Weighting`."""
        return self.of.divides_by_weights

    def __getattr__(self, name: str) -> Any:
        """Return a hyperparameter of the weighting inside, such as `kept_share`."""
        if name.startswith("_") or name == "of":
            raise AttributeError(name)
        return getattr(self.of, name)

    def weights(self, targets: Targets, /) -> Tensor:
        """Return the weights of a head, float32 [B, T − k]."""
        weights = self.of.weights(targets).flatten()
        invalid = (~targets.valid).flatten()
        places = invalid.to(torch.uint8).argsort(stable=True)  # labelled tokens first
        order = torch.where(invalid, 2.0, targets.random().flatten()).argsort(stable=True)
        shuffled = torch.empty_like(weights)
        shuffled[places] = weights[order]
        return shuffled.view(targets.valid.shape)
