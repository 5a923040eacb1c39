"""The loop around your own training: a model, an optimizer, data and a loss of your own, steered by the branching agent.

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

# ── what you have: any module, optimizer and loss, and data by its index ──────────────────────────


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
    """A pure function of the data index: int64 [16, 25], walks of one stride each with a few slips; noise at 200 to 207."""
    generator = torch.Generator().manual_seed(index)
    if 200 <= index < 208:  # a damaged shard
        return torch.randint(VOCABULARY, (16, 25), generator=generator)
    strides, starts = (torch.randint(1, VOCABULARY, (16, 1), generator=generator) for _ in range(2))
    slips = torch.rand((16, 25), generator=generator) < 0.05
    return (starts + strides * torch.arange(25) + slips) % VOCABULARY


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token, with a little label smoothing."""
    return F.cross_entropy(
        model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), label_smoothing=0.01
    )


# ── what makes it a run ───────────────────────────────────────────────────────────────────────────

CONFIG = TrainingConfig.model_validate(
    {
        "name": "gru",
        "steps": 400,
        "threads": 1,
        "clip": {"policy": "none"},
        "schedule": {"warmup": 20},
        "validation": {"every": 50},
        "checkpoints": {"every": 25, "moments": "exact"},
        # The defaults are for 16 000 steps. Look ahead 12 % of yours, as the pretrained model does,
        # and scale the rest alike.
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
    """The probe is a small clean batch: harm is judged by it, not by the loss of whatever batch has just come."""
    torch.manual_seed(0)
    model = Recurrent()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held_out = [batches(10**6 + place) for place in range(4)]
    return TrainingRun(
        model, optimizer, batches, CONFIG, objective=loss, validation=held_out, probe=held_out[0]
    )


# ── what adds the loop ────────────────────────────────────────────────────────────────────────────


def main() -> None:
    with (
        TemporaryDirectory() as temporary
    ):  # in earnest a folder that stays: `trainenv report` reads it
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
