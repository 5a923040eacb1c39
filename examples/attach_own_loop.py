"""A training loop of your own that rolls back, skips a bad shard and lowers the rate by itself.

python examples/attach_own_loop.py

`attach_huggingface.py` does the same for a Trainer of transformers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainenv

STEPS = 300
BAD = range(200, 210)  # the shard in the middle of which the data are broken


class Bigram(nn.Module):
    """Model that predicts the next token from the previous one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 32)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(32, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.relu(self.drop(self.embedding(tokens))))


def batch(place: int) -> Tensor:
    """Make a batch: int64 tokens [8, 33], walks over 32 tokens, or noise in the bad shard."""
    generator = torch.Generator().manual_seed(place)
    if place in BAD:
        return torch.randint(32, (8, 33), generator=generator)
    return torch.randint(1, 4, (8, 33), generator=generator).cumsum(1) % 32


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token."""
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def train(out: Path) -> tuple[list[float], trainenv.integrations.Steer]:
    """Train with three lines that are not usual, and return the losses of the kept steps."""
    torch.manual_seed(0)
    model = Bigram()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    loader = [batch(place) for place in range(STEPS)]
    held_out = [batch(10**6 + place) for place in range(4)]

    losses = []
    steer = trainenv.steer(
        model, optimizer, loader, scheduler, out=out, validation=held_out, loss=loss_of,
        mode="rules",
    )  # fmt: skip
    for tokens in steer:  # was: for tokens in loader
        loss = loss_of(model, tokens)
        loss.backward()
        if steer.kept:  # neither a branch nor held-out data
            losses.append(loss.item())
        steer.step(loss)  # was: optimizer.step(); scheduler.step(); optimizer.zero_grad()
    return losses, steer


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        losses, steer = train(Path(folder) / "mine")
        print(steer.statement)
        summary = steer.report().summary
        print(f"trained {len(losses)} steps to keep {summary['step']}")
        print(f"rolled back {summary['rewinds']} times; skipped {sorted(steer.run.flagged)}")
        print(f"the learning rate is now {steer.run.lr_scale:.2f} of the schedule")
        print(f"held-out loss {summary['final_validation_loss']:.3f} nats")


if __name__ == "__main__":
    main()
