"""A training of Lightning that lowers a rate that is too high by itself: one callback more.

python examples/attach_lightning.py

Needs the extra `lightning`.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import trainenv

STEPS = 200


def walks(count: int, seed: int) -> Tensor:
    """Make int64 tokens [count, 33], walks over 32 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 4, (count, 33), generator=generator).cumsum(1) % 32


class Bigram(LightningModule):
    """Model that predicts the next token from the previous one."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Embedding(32, 32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, 32)
        )

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        """Mean cross-entropy in nats per token."""
        logits = self.model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def validation_step(self, tokens: Tensor, batch_idx: int) -> None:
        """Log the held-out loss."""
        self.log("held_out", self.training_step(tokens, batch_idx))

    def configure_optimizers(self) -> Any:
        """Warm up over 20 steps, to a rate that is a hundred times too high."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1.0)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20))
        return [optimizer], [{"scheduler": warmup, "interval": "step"}]


def main() -> None:
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec.*")
    torch.manual_seed(0)
    loader = DataLoader(walks(8 * STEPS, 0), batch_size=8, shuffle=True)  # type: ignore[arg-type]
    held_out = DataLoader(walks(64, 1), batch_size=32)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        steer = trainenv.integrations.lightning.Steer(out=Path(folder) / "mine", max_waste=0.5)
        trainer = Trainer(
            max_steps=STEPS,
            callbacks=[steer],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Bigram(), loader, held_out)
        print(steer.statement)
        summary = steer.report().summary
        print(f"kept {summary['step']} steps, final loss "
              f"{summary['final_validation_loss']:.3f} nats held out")  # fmt: skip
        print(f"the learning rate is now {steer.session.run.lr_scale:.2f} of the schedule")


if __name__ == "__main__":
    main()
