"""Activation checkpointing by segments of blocks (Chen 2016): memory in the order of √n.

With segments of k blocks, n ÷ k inputs of segments are kept, and the backward pass computes the k
blocks of one segment again at a time. k = √n keeps the fewest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Segmented:
    """Part of a model that runs its blocks in segments.

    Attributes:
        segment: Number of blocks whose activations are computed again together in the backward
            pass; 0 to keep all activations.
    """

    segment: int = 0
    training: bool

    def through(
        self, blocks: nn.ModuleList, call: Callable[[Any, Tensor], Tensor], hidden: Tensor
    ) -> Tensor:
        """Run hidden states through blocks, with the same bits for any segment.

        Random numbers, such as those of dropout, are the same when a segment is computed again.

        Args:
            blocks: Blocks in their order.
            call: Function that runs one block: (block, hidden) → hidden.
            hidden: Hidden states, [B, T, W].
        """

        def run(start: int, stop: int, hidden: Tensor) -> Tensor:
            for place in range(start, stop):
                hidden = call(blocks[place], hidden)
            return hidden

        count = len(blocks)
        if not (self.segment and self.training and torch.is_grad_enabled()):
            return run(0, count, hidden)
        for start in range(0, count, self.segment):
            stop = min(start + self.segment, count)
            kept: Any = checkpoint(run, start, stop, hidden, use_reentrant=False)
            hidden = kept
        return hidden


def root_segment(blocks: int) -> int:
    """Return the number of blocks in a segment that keeps the fewest activations: √n."""
    return max(1, round(math.sqrt(blocks)))
