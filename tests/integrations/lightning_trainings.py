"""Small trainings of Lightning, with and without us."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from tests.integrations.trainings import Sequences, Small, loss_of


class Module(LightningModule):
    """The small language model as a module of Lightning, which logs its loss.

    Args:
        lr: Learning rate.
        factor: Factor on it from step 200 on, where it warms up over 20 steps; None for a cosine.
    """

    def __init__(self, lr: float = 3e-3, factor: float | None = None) -> None:
        super().__init__()
        self.model = Small()
        self.lr = lr
        self.factor = factor

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = loss_of(self.model, batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("held out", loss_of(self.model, batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        if self.factor is None:
            scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
        else:
            factor = self.factor
            scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: min(1.0, (step + 1) / 20) * (factor if step >= 200 else 1.0)
            )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    @property
    def final(self) -> float:
        """Held-out loss at the end."""
        self.eval()
        with torch.no_grad():
            return loss_of(self.model, held_out().dataset[:]).item()


def held_out() -> DataLoader[Any]:
    """Return a loader of one held-out batch."""
    sequences = Sequences(40, first=1000)
    return DataLoader(torch.stack([sequences[i] for i in range(8)]), batch_size=8)  # type: ignore[arg-type]


def loader(examples: int = 103) -> DataLoader[Any]:
    """Return a loader of shuffled batches."""
    return DataLoader(Sequences(examples), batch_size=4, shuffle=True)


def fit(
    folder: Path,
    *callbacks: Any,
    data: Any = None,
    module: Callable[[], Module] = Module,
    validation: Any = None,
    ckpt_path: Any = None,
    **changed: Any,
) -> Trainer:
    """Train with some callbacks, and return the Trainer."""
    torch.manual_seed(0)
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": CSVLogger(folder, name="log", version=0),
        "log_every_n_steps": 3,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
        **changed,
    }
    made = module()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*isinstance.treespec.*")
        warnings.filterwarnings("ignore", ".*checkpoint.*")
        trainer = Trainer(callbacks=list(callbacks), **settings)
        trainer.fit(
            made,
            loader() if data is None else data,
            held_out() if validation is None else validation,
            ckpt_path=ckpt_path,
        )
    return trainer


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Return everything that training has changed, and Lightning's own log."""
    log = Path(trainer.logger.log_dir) / "metrics.csv"  # type: ignore[union-attr, arg-type]
    return {
        "model": trainer.lightning_module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "log": log.read_text(),
        "metrics": dict(trainer.logged_metrics),
        "loops": trainer.fit_loop.state_dict(),
        "limits": [trainer.max_epochs, trainer.max_steps],
        "generator": torch.get_rng_state(),
    }
