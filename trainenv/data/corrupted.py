"""Batches of a corpus under span corruption, as a pure function of the data index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainenv.data.batches import CorpusBatches
from trainenv.data.corpus import Corpus
from trainenv.data.stressors import philox
from trainenv.objectives.span_corruption import SpanCorruption, lengths_of
from trainenv.types import Batch

_PURPOSE = "corpora/spans"


@dataclass(frozen=True)
class CorruptedBatches:
    """Batches whose spans are drawn anew for each data index.

    The same index gives the same text and the same spans, for any number of micro-batches.

    Args:
        batches: Batches of text, with their stressors.
        corruption: Rule that makes inputs and targets.
    """

    batches: CorpusBatches
    corruption: SpanCorruption

    @property
    def corpus(self) -> Corpus:
        """Corpus that sequences are cut from."""
        return self.batches.corpus

    @property
    def context(self) -> int:
        """Length of the inputs of a sequence in tokens."""
        tokens = self.batches.context + 1
        return lengths_of(tokens, self.corruption.share, self.corruption.mean_span).inputs

    @property
    def epoch_steps(self) -> int:
        """Number of data indices in an epoch."""
        return self.batches.epoch_steps

    def __call__(self, index: int, /) -> Batch:
        """Return the batch of data index `index` ≥ 0.

        Each micro-batch holds `input_ids` [B, I] and `labels` [B, O], int64.
        """
        text = self.batches(index)
        micro = _corrupted(self.corruption, text.micro, philox(self.batches.seed, _PURPOSE, index))
        return Batch(micro=micro, index=index, stressors=text.stressors)

    def __deepcopy__(self, memo: dict[int, Any]) -> CorruptedBatches:
        return self


def corrupted_set(
    corruption: SpanCorruption, name: str, micro: tuple[Tensor, ...]
) -> tuple[dict[str, Tensor], ...]:
    """Return the micro-batches of a set to evaluate on, with spans that are the same in all runs.

    Args:
        corruption: Rule that makes inputs and targets.
        name: Name of the set; two sets have other spans.
        micro: Text of each micro-batch, int64 [B, L].
    """
    return _corrupted(corruption, micro, philox(0, f"{_PURPOSE}/{name}", 0))


def _corrupted(
    corruption: SpanCorruption, micro: tuple[Tensor, ...], generator: np.random.Generator
) -> tuple[dict[str, Tensor], ...]:
    rows = [len(one) for one in micro]
    inputs, targets = corruption.corrupt(torch.cat(micro).numpy(), generator)
    parts = zip(torch.from_numpy(inputs).split(rows), torch.from_numpy(targets).split(rows))
    return tuple({"input_ids": ids, "labels": labels} for ids, labels in parts)
