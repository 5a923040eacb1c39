"""From logits to a token: temperature, top-p, and random numbers that each row has for itself.

Every row of a batch has its own generator, seeded by the seed and the index of the row, and takes a
fixed number of numbers from it a draft and a target call. So the random choices of a row do not
depend on its neighbours, on how many there are, or on when they end. (The logits may: a model gives
last bits that depend on the size of the batch.)

The numbers are made on the CPU in float64, so that they are the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainenv.decoding.contract import Sampling


class RowGenerators:
    """One generator a row, seeded by (seed, row); a `RandomSource`.

    Args:
        seed: Random seed of the batch, at least 0.
        device: Device that the numbers are moved to.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._device = device
        self._generators: dict[int, torch.Generator] = {}

    def uniform(self, row_ids: Sequence[int], count: int) -> Tensor:
        """Return the next `count` numbers of each row named, float64 [B, count] in [0, 1)."""
        drawn = [torch.rand(count, generator=self._of(row), dtype=torch.float64) for row in row_ids]
        return torch.stack(drawn).to(self._device)

    def _of(self, row: int) -> torch.Generator:
        generator = self._generators.get(row)
        if generator is None:
            word = np.random.SeedSequence((self._seed, row)).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(word))
            self._generators[row] = generator
        return generator


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the distribution that is sampled from, [..., V], in the type of the logits [..., V].

    Greedy sampling puts 1 on the most likely token, the first of equals.
    """
    if sampling.greedy:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, best, 1.0)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p == 1:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered  # mass of the more likely tokens
    ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
    kept = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    return kept / kept.sum(dim=-1, keepdim=True)


def largest(logits: Tensor) -> Tensor:
    """Return the largest probability of the softmax at temperature 1, [...], of [..., V]."""
    return (logits.amax(dim=-1) - logits.logsumexp(dim=-1)).exp()


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return one token a row, int64 [B], of distributions [B, V] by numbers [B] in [0, 1).

    A token of probability 0 is never drawn.
    """
    below = probabilities.double().cumsum(dim=-1).contiguous()
    total = below[:, -1:].contiguous()
    wanted = (uniform.unsqueeze(-1) * total).contiguous()
    found = torch.searchsorted(below, wanted, right=True)
    last = torch.searchsorted(below, total)  # the last token with a probability above 0
    return torch.minimum(found, last).squeeze(-1)


def accepted(probability: Tensor, uniform: Tensor) -> Tensor:
    """Return True where a token of this probability is accepted, bool [B, N], by numbers [B, N]."""
    return uniform < probability
