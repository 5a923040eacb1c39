"""A loop that Accelerate has prepared, which lowers a rate that is too high by itself.

python examples/attach_accelerate.py

`attach_own_loop.py` is the same without Accelerate. Needs the package `accelerate`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

import trainenv

STEPS = 200


def walks(count: int, seed: int) -> Tensor:
    """Make int64 tokens [count, 33], walks over 32 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 4, (count, 33), generator=generator).cumsum(1) % 32


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token."""
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Embedding(32, 32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)  # a hundred times too high
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20))
    loader = DataLoader(walks(8 * STEPS, 0), batch_size=4, shuffle=True)  # type: ignore[arg-type]
    held_out = DataLoader(walks(64, 1), batch_size=32)  # type: ignore[arg-type]
    model, optimizer, loader, held_out, scheduler = accelerator.prepare(
        model, optimizer, loader, held_out, scheduler
    )
    with tempfile.TemporaryDirectory() as folder:
        steer = trainenv.steer(
            model, optimizer, loader, scheduler, out=Path(folder) / "mine",
            validation=held_out, loss=loss_of, max_waste=0.5,
        )  # fmt: skip
        for tokens in steer:  # was: for tokens in loader
            with accelerator.accumulate(model):
                loss = loss_of(model, tokens)
                accelerator.backward(loss)
                steer.step(loss)  # was: optimizer.step(); scheduler.step(); optimizer.zero_grad()
        print(steer.statement)
        summary = steer.report().summary
        print(f"kept {summary['step']} steps, final loss "
              f"{summary['final_validation_loss']:.3f} nats held out")  # fmt: skip
        print(f"the learning rate is now {steer.run.lr_scale:.2f} of the schedule")


if __name__ == "__main__":
    main()
