"""TD errors of a critic on tasks that it has not seen, with right and with wrong solutions.

The weights of the critic are exp(δ ÷ β), so that the distribution of δ says what they can do. If
the values do not differ between right and wrong, δ is near 0 but for the last token of a solution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from trainenv.data.tasks.sample_corpus import SampleCorpus, encode
from trainenv.data.tasks.sample_sets import of_tasks
from trainenv.data.tokenizers import Bytes
from trainenv.objectives.measures import value_measures
from trainenv.objectives.micro_batch import MicroBatch
from trainenv.objectives.weightings.critic import td_errors

BINS = 40
"""Bins of a histogram of δ, from −1 to 1."""
_ROWS = 64  # samples of one forward pass


@torch.no_grad()
def td_errors_of(
    model: nn.Module, corpus: SampleCorpus, context: int, weighting: Any
) -> dict[str, Any] | None:
    """Return the TD errors of a value head on the test tasks; None without a value head.

    Args:
        model: Model with future heads.
        corpus: Corpus with test tasks; each is read with a right and with a wrong solution.
        context: Number of inputs of a row.
        weighting: Weighting of the run: the critic, or a control of it.

    Returns:
        `right` and `wrong`, the number of tokens in each bin of δ; `explained`, the explained
        variance of the values; and `ranked`, the share of tasks whose right solution ends with a
        higher value than the wrong one, 0.5 by chance.
    """
    heads: Any = getattr(model, "future_heads", None)
    if getattr(heads, "value", None) is None:
        return None
    gamma: float = getattr(weighting, "of", weighting).gamma
    training = {module: module.training for module in model.modules()}
    model.eval()
    samples = encode(of_tasks(corpus.test_tasks, "balanced"), Bytes(), corpus.end)
    pairs = np.arange(len(samples)).reshape(-1, 2)
    whole = np.isin(pairs, samples.fitting(context)).all(axis=1)
    chosen = pairs[whole].ravel()
    errors: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    known: list[torch.Tensor] = []
    rewards: list[torch.Tensor] = []
    try:
        for start in range(0, len(chosen), _ROWS):
            micro = samples.micro_batch(chosen[start : start + _ROWS], context)
            device = next(model.parameters()).device
            data = MicroBatch.of({name: part.to(device) for name, part in micro.items()})
            value = heads.values(heads.trunk(model, data.inputs, data.mask).hidden).float()
            labelled = data.labelled(0)
            errors.append(td_errors(value, data.rewards, labelled, gamma).cpu())
            values.append(value.cpu())
            known.append(labelled.cpu())
            rewards.append(data.rewards.cpu())
    finally:
        for module, was in training.items():
            module.training = was
    every = torch.cat(values)
    labelled = torch.cat(known)
    reward = torch.cat(rewards)
    found = value_measures(every, None, reward, labelled)
    return {
        **{
            name: _histogram(torch.cat(errors)[wanted][labelled[wanted]])
            for name, wanted in (("right", reward == 1), ("wrong", reward == 0))
        },
        "explained": float(found["value_explained_variance"]),
        "ranked": _ranked(every, labelled),
    }


def added(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the TD errors of several runs in one: counts are added, the others are means."""
    counts = {
        name: np.sum([one[name] for one in tables], axis=0).tolist() for name in ("right", "wrong")
    }
    means = {
        name: float(np.mean([one[name] for one in tables])) for name in ("explained", "ranked")
    }
    return counts | means


def _histogram(errors: torch.Tensor) -> list[int]:
    counts, _ = np.histogram(errors.clamp(-1, 1).numpy(), bins=BINS, range=(-1, 1))
    return [int(count) for count in counts]


def _ranked(values: torch.Tensor, labelled: torch.Tensor) -> float:
    """Return how often the last value is higher for the right solution; a tie counts one half."""
    places = torch.arange(values.shape[1])
    last = torch.where(labelled, places, -1).max(dim=1, keepdim=True).values
    ends = values.gather(1, last).view(-1, 2)  # right and wrong take turns
    above = (ends[:, 0] > ends[:, 1]).float() + 0.5 * (ends[:, 0] == ends[:, 1]).float()
    return float(above.mean())
