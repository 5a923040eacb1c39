"""Runs of a few thousand steps a second to drive, alarms where a test wants them, and what reads the records back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.support.bigram import Bigram, tokens
from trainenv import Intervention, TrainingConfig, TrainingRun
from trainenv.checkpoints.store import CheckpointStore
from trainenv.loop import Callback, CallbackResult
from trainenv.records.run_folder import RunFolder
from trainenv.types import Event, Snapshot, Telemetry


def toy(steps: int = 40, every: int = 0, lr: float = 1e-2, **more: Any) -> TrainingRun:
    """A run of a few thousand steps a second."""
    model = Bigram()
    monitor = {"block": 8, "probe_every": 0}
    settings = {
        "steps": steps,
        "validation": {"every": every},
        "monitor": monitor,
        "schedule": {"warmup": 0},
    } | more
    config = TrainingConfig(**{"name": "toy", "clip": {"policy": "none"}} | settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    return TrainingRun(model, optimizer, tokens, config, validation=[tokens(10**6)])


def newest(folder: RunFolder) -> Snapshot:
    """The checkpoint that was saved last."""
    return CheckpointStore(folder.path / "checkpoints").load()


@dataclass
class Rewinder(Callback):
    """Goes back to the start once, at `at`; remembers what it was called with."""

    at: int = 10**9
    windows: list[list[int]] = field(default_factory=list)
    start: Snapshot | None = None

    def on_block_end(self, run: TrainingRun, window: Sequence[Telemetry], /) -> CallbackResult:
        self.windows.append([t.step for t in window])
        if self.start is None:
            self.start = run.snapshot()
        if run.step < self.at:
            return CallbackResult()
        seen, self.at = run.step, 10**9
        run.rewind(self.start)
        run.apply(Intervention(lr_scale=0.5))
        rewind = Event(seen, "rewind", {"to": self.start.step, "lr_scale": run.lr_scale})
        return CallbackResult(events=[rewind, Event(run.step, "intervention", {"lr_scale": 0.5})])
