"""Ensemble of perceptrons that value paths: ln final loss less ln loss now, mean and quantiles.

The mean prices in what is seldom and dear, such as a fault that meets a high rate; the median does
not.

The first layer is split into the state's part, computed once, and the path's part, computed for
every path; all members are one batched matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv.worldmodel.paths.inputs import PATH, STATE_INPUTS

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Levels of the quantiles."""
OUTPUTS = 1 + len(LEVELS)
"""Outputs of a member: the mean, then the quantiles."""
OF_THE_RUN = torch.tensor(
    [True] * STATE_INPUTS + [name.endswith(("_usual", "_known", "_past")) for name in PATH]
)
"""Flags of the inputs that are facts about the run; the others are of the path alone."""
_LARGEST = 6.0  # inputs are clipped to ± this many standard deviations


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of an ensemble.

    Attributes:
        members: Number of perceptrons.
        width: Width of their two hidden layers.
        dropout: Share of hidden values that training drops.
    """

    members: int = 10
    width: int = 128
    dropout: float = 0.1


class Ensemble(nn.Module):
    """Perceptrons of one shape, trained on the same examples from different weights.

    Args:
        shape: Sizes.
    """

    center: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        sizes = (STATE_INPUTS + len(PATH), shape.width, shape.width, OUTPUTS)
        self.weights = nn.ParameterList(
            torch.randn(shape.members, a, b) / a**0.5 for a, b in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(shape.members, 1, b) for b in sizes[1:])
        self.register_buffer("center", torch.zeros(sizes[0]))  # of the inputs
        self.register_buffer("scale", torch.ones(sizes[0]))
        self.register_buffer("offset", torch.zeros(1))  # of the outputs

    def forward(self, inputs: Tensor, blind: Tensor | None = None) -> Tensor:
        """Return mean and quantiles [M, n, 1 + Q] in nats.

        Args:
            inputs: Inputs [n, I].
            blind: Flags [n] of the examples that are shown nothing of the run; None for none.
        """
        x = self._scaled(inputs, slice(None))
        if blind is not None:
            x = torch.where(blind[:, None] & OF_THE_RUN, torch.zeros(()), x)
        first = torch.matmul(x, self.weights[0]) + self.biases[0]
        return self._rest(first)

    def of_state(self, state: Tensor, blind: bool = False) -> Tensor:
        """Return the state's part [M, 1, W] of the first layer, for state inputs [1, 2F]."""
        x = self._scaled(state, slice(0, STATE_INPUTS)) * (not blind)
        begun: Tensor = torch.matmul(x, self.weights[0][:, :STATE_INPUTS]) + self.biases[0]
        return begun

    def of_paths(self, begun: Tensor, paths: Tensor, blind: bool = False) -> Tensor:
        """Return mean and quantiles [M, K, 1 + Q] for the state's part and path features [K, P]."""
        x = self._scaled(paths, slice(STATE_INPUTS, None))
        if blind:
            x = torch.where(OF_THE_RUN[STATE_INPUTS:], torch.zeros(()), x)
        return self._rest(begun + torch.matmul(x, self.weights[0][:, STATE_INPUTS:]))

    def _scaled(self, inputs: Tensor, part: slice) -> Tensor:
        scaled: Tensor = (inputs - self.center[part]) / self.scale[part]
        return scaled.clamp(-_LARGEST, _LARGEST)

    def _rest(self, first: Tensor) -> Tensor:
        x = F.dropout(F.silu(first), self.shape.dropout, self.training)
        x = torch.baddbmm(self.biases[1].expand(-1, x.shape[1], -1), x, self.weights[1])
        x = F.dropout(F.silu(x), self.shape.dropout, self.training)
        found: Tensor = torch.baddbmm(self.biases[2].expand(-1, x.shape[1], -1), x, self.weights[2])
        return found + self.offset
