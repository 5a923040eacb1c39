"""The branching loop around your own model, optimizer, data and loss.

python examples/own_loop.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainenv import TrainingConfig, TrainingRun, agents, planners, worldmodel
from trainenv.loop import train
from trainenv.records.run_folder import RunFolder
from trainenv.report.run.run_report import RunReport

VOCABULARY = 32

# ── your training: any module, optimizer and loss, and data by index ──────────────────────────────


class Recurrent(nn.Module):
    """GRU that predicts the next token; the loop does not need a transformer."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(tokens))[0])


def batches(index: int) -> Tensor:
    """Make the batch of a data index: int64 tokens [16, 25], a pure function of the index.

    Each sequence is a walk of one stride with a few slips. Batches 200 to 207 are noise.
    """
    generator = torch.Generator().manual_seed(index)
    if 200 <= index < 208:  # a damaged shard
        return torch.randint(VOCABULARY, (16, 25), generator=generator)
    strides, starts = (torch.randint(1, VOCABULARY, (16, 1), generator=generator) for _ in range(2))
    slips = torch.rand((16, 25), generator=generator) < 0.05
    return (starts + strides * torch.arange(25) + slips) % VOCABULARY


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token, with a little label smoothing."""
    return F.cross_entropy(
        model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), label_smoothing=0.01
    )


# ── your training as a run ────────────────────────────────────────────────────────────────────────

CONFIG = TrainingConfig.model_validate(
    {
        "name": "gru",
        "steps": 400,
        "threads": 1,
        "clip": {"policy": "none"},
        "schedule": {"warmup": 20},
        "validation": {"every": 50},
        "checkpoints": {"every": 25, "moments": "exact"},
        # The defaults suit 16 000 steps. Set the horizon to 12 % of your steps, as the pretrained
        # model expects, and scale the other keys by the same factor.
        "branching": {
            "every": 50,
            "rewind": 25,
            "horizon": 48,
            "verify_steps": 6,
            "refractory_steps": 20,
        },
    }
)


def fresh_run() -> TrainingRun:
    """Build the run.

    The probe is a small clean batch. Harm is detected by its loss, because the training loss also
    depends on the latest batch.
    """
    torch.manual_seed(0)
    model = Recurrent()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held_out = [batches(10**6 + place) for place in range(4)]
    return TrainingRun(
        model, optimizer, batches, CONFIG, objective=loss, validation=held_out, probe=held_out[0]
    )


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    # Use a permanent folder for your own runs: `trainenv report` reads it.
    with TemporaryDirectory() as temporary:
        alone = train(fresh_run(), RunFolder.create(Path(temporary) / "alone", CONFIG))

        loop = agents.Branching(planner=planners.make("grid"), model=worldmodel.load_pretrained())
        run, folder = fresh_run(), RunFolder.create(Path(temporary) / "steered", CONFIG)
        print(loop.cost_estimate(run))
        steered = train(run, folder, callback=loop)
        print(RunReport(folder.path).tree())
    for name, summary in {"left alone": alone, "steered": steered}.items():
        print(f"{name}: {summary['final_validation_loss']:.3f} nats after {summary['step']} steps")
    print(f"in force at the end: learning rate × {run.lr_scale:.2f}, clipping by {run.clip}")


if __name__ == "__main__":
    main()
