"""The loop around your own training: a model, an optimizer, data and a loss of your own, steered by the branching agent.

python examples/own_loop.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agents
import planners
import worldmodel
from trainenv import TrainingConfig, TrainingRun
from trainenv.driving import Responder, drive
from trainenv.records.folder import RunFolder
from trainenv.records.tree import RunReport

VOCABULARY, STEPS = 32, 400

# ── what you have: any module, any optimizer, any loss ──────────────────────────────────────────────────────────────────


class Recurrent(nn.Module):
    """A GRU that predicts the next token. Nothing in the loop asks for a transformer."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(tokens))[0])


def batches(index: int) -> Tensor:
    """A pure function of the data index: walks over 32 tokens whose step repeats, int64 [16, 25]; noise at 200 to 207."""
    generator = torch.Generator().manual_seed(index)
    if 200 <= index < 208:  # a damaged shard
        return torch.randint(VOCABULARY, (16, 25), generator=generator)
    strides, starts = (torch.randint(1, VOCABULARY, (16, 1), generator=generator) for _ in range(2))
    walks = starts + strides * torch.arange(25)
    slips = torch.rand(walks.shape, generator=generator) < 0.05
    return (walks + slips) % VOCABULARY


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token, with a little label smoothing."""
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), label_smoothing=0.01)


def trained(folder: Path, responder: Responder | None) -> dict[str, Any]:
    """Train it, recorded in a folder; and steered, where there is a responder."""
    torch.manual_seed(0)
    model = Recurrent()
    config = TrainingConfig.model_validate(SETTINGS)
    held_out = [batches(10**6 + place) for place in range(4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run = TrainingRun(model, optimizer, batches, config, objective=loss, validation=held_out, probe=held_out[0])
    if isinstance(responder, agents.Branching):
        print(responder.statement(run))
    return drive(run, RunFolder.create(folder, config), responder=responder)


# ── what you add ────────────────────────────────────────────────────────────────────────────────────────────────────────

SETTINGS = {
    "name": "gru",
    "steps": STEPS,
    "threads": 1,
    "clip": {"policy": "none"},
    "schedule": {"warmup": 20},
    "reset_warmup": 10,
    "validation": {"every": 50},
    "checkpoints": {"every": 25, "moments": "exact"},
    # The defaults are for 16 000 steps; look ahead 12 % of yours, and scale the rest likewise.
    "branching": {"every": 50, "rewind": 25, "horizon": 48, "verify_steps": 6, "quiet": 20},
}


def main() -> None:
    with TemporaryDirectory() as folder:
        alone = trained(Path(folder) / "alone", None)
        loop = agents.Branching(planner=planners.make("grid"), model=worldmodel.load_pretrained())
        steered = trained(Path(folder) / "steered", loop)
        print(RunReport(Path(folder) / "steered").tree())
    for name, summary in {"left alone": alone, "steered": steered}.items():
        print(f"{name}: {summary['final_validation_loss']:.3f} nats after {summary['step']} steps, {summary['rewinds']} rewinds")


if __name__ == "__main__":
    main()
