"""Every path of a decoder: all drafted tokens, decisions and replacements, with probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from trainenv.decoding import sampling


def law_of(
    run: Callable[[], Sequence[int]],
    *,
    vocabulary: int,
    length: int,
    monkeypatch: pytest.MonkeyPatch,
) -> Tensor:
    """Return the probability of each text that `run` gives, [V, …, V]; `run` decodes one row.

    Where the decoder draws a token or decides by chance, it is run again for each other way.
    """
    law = torch.zeros((vocabulary,) * length, dtype=torch.float64)
    scripts: list[list[int]] = [[]]
    chosen: list[int] = []
    weight = 1.0

    def choose(chances: list[float]) -> int:
        nonlocal weight
        open_ways = [way for way, chance in enumerate(chances) if chance > 0]
        if len(chosen) < len(script):
            way = script[len(chosen)]
        else:
            way = open_ways[0]
            scripts.extend([*chosen, other] for other in open_ways[1:])
        chosen.append(way)
        weight *= chances[way]
        return way

    def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
        assert len(probabilities) == 1
        return torch.tensor([choose(probabilities[0].tolist())])

    def accepted(probability: Tensor, uniform: Tensor) -> Tensor:
        stays = torch.zeros(probability.shape, dtype=torch.bool)
        for place, chance in enumerate(probability[0].tolist()):
            if not choose([1 - chance, chance]):
                break
            stays[0, place] = True
        return stays

    monkeypatch.setattr(sampling, "draw", draw)
    monkeypatch.setattr(sampling, "accepted", accepted)
    while scripts:
        script = scripts.pop()
        chosen.clear()
        weight = 1.0
        law[tuple(run())] += weight
    return law
