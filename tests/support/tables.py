"""Language models that are tables: the logits of a token depend on the two tokens before it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Table(nn.Module):
    """A causal LM with logits [V, V, V], by the token before the last, the last, and the next."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)
        self.eval()

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        before = torch.nn.functional.pad(input_ids, (1, 0))[:, :-1]
        return SimpleNamespace(logits=self.logits[before, input_ids])

    def after(self, prompt: list[int]) -> Any:
        """Return the function from new tokens to the logits of the next one, [V]."""

        def logits(tokens: tuple[int, ...]) -> Tensor:
            known = [0, *prompt, *tokens]
            return self.logits[known[-2], known[-1]]

        return logits


def table(vocabulary: int, *, seed: int, sharpness: float = 1.5) -> Table:
    """Return a random table in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (vocabulary,) * 3
    return Table(sharpness * torch.randn(shape, generator=generator, dtype=torch.float64))


def constant(probabilities: list[float]) -> Table:
    """Return a table with the same distribution after every text."""
    logits = torch.tensor(probabilities, dtype=torch.float64).log()
    return Table(logits.expand(*[len(probabilities)] * 3).clone())
