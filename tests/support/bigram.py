"""The smallest language model there is, and data for it: a few thousand steps a second."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def tokens(index: int) -> Tensor:
    """Two sequences of nine tokens, any after any."""
    return torch.randint(0, 8, (2, 9), generator=torch.Generator().manual_seed(index))


class Bigram(nn.Module):
    """Logits of the next token from the one before it. In training, `trouble` is called with the weights first."""

    def __init__(self, trouble: Callable[[Tensor], None] = lambda weight: None) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 8)
        self.trouble = trouble
        nn.init.zeros_(self.table.weight)

    def forward(self, seen: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.trouble(self.table.weight.detach())
        logits: Tensor = self.table(seen)
        return logits


def raises(raised: Callable[[], Exception]) -> Callable[[Tensor], None]:
    """Trouble for what learns fast: by itself, at a rate of 0.01, no weight is above 0.5 soon."""

    def trouble(weight: Tensor) -> None:
        if float(weight.abs().max()) > 0.5:
            raise raised()

    return trouble
