"""Your own model, optimizer, data, schedule and loss, steered by hand and forked like ours; own_loop.py adds the loop.

python examples/own_model.py
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv import Intervention, TrainingConfig, TrainingRun


class Bigram(nn.Module):
    """Predicts the next token from the one before it."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


def batches(index: int) -> Tensor:
    """A pure function of the data index: int64 tokens [16, 33] of a noisy walk over 32 tokens."""
    generator = torch.Generator().manual_seed(index)
    steps = torch.randint(1, 4, (16, 33), generator=generator)
    return steps.cumsum(1) % 32


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Label-smoothed cross-entropy, a loss of one's own."""
    return F.cross_entropy(
        model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), label_smoothing=0.01
    )


def main() -> None:
    torch.manual_seed(0)
    model = Bigram(32)
    run = TrainingRun(
        model,
        torch.optim.SGD(model.parameters(), lr=20.0, momentum=0.9),
        batches,
        TrainingConfig(steps=200),
        objective=loss,
        schedule=lambda step, progress: 1 - 0.9 * progress,
        validation=[batches(10**6 + i) for i in range(4)],
    )
    print(f"at the start {run.evaluate():.3f} nats, a uniform guess has {math.log(32):.3f}")
    run.advance(100)
    branch = run.fork()
    branch.apply(Intervention(lr_scale=0.5, clip="zclip"))
    run.advance(100)
    branch.advance(100)
    print(
        f"left alone {run.evaluate():.3f}, at half the learning rate with ZClip "
        f"{branch.evaluate():.3f}; {run.ledger}"
    )


if __name__ == "__main__":
    main()
