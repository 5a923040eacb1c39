"""A recorded run with a rollback and a decision, made up without training, that trackers follow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.support.made_folders import decision, rows_of, summary, write_decision
from trainenv.config.schema import RunConfig
from trainenv.records.observer import Observer
from trainenv.records.run_folder import RunFolder
from trainenv.records.telemetry_log import telemetry_of
from trainenv.training.ledger import Ledger
from trainenv.types import Event, Telemetry

STEPS = 60
DECISION = 40  # step of the decision, to which the run goes back
SEEN = 48
_FLOPS = 1e6  # of a step


class RecordedRun:
    """A run as its observers see it."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.step = 0
        self.ledger = Ledger()
        self.horizon = SimpleNamespace(end=config.steps)

    def train(self, folder: RunFolder, window: list[Telemetry]) -> None:
        """Record a block, and charge it."""
        self.ledger.charge("main", _FLOPS * len(window))
        self.step = window[-1].step
        folder.steps(window)


def steps(first: int, last: int, line: int = 0) -> list[Telemetry]:
    """Telemetry of the steps `first` + 1 to `last`."""
    return telemetry_of(rows_of(first, last, STEPS, np.random.default_rng(line), line=line))


def record(
    path: Path, observers: list[Observer], during: Callable[[], None] = lambda: None, **config: Any
) -> Path:
    """Record a run of sixty steps that goes back from step 48 to 40, where a branch is accepted.

    Args:
        path: Folder of the run.
        observers: Observers that follow it.
        during: Called after half of it.
        config: Keys of its configuration.
    """
    run = RecordedRun(RunConfig.load("tiny", {"steps": STEPS, **config}))
    folder = RunFolder.create(path, run.config)
    with folder.observed(run, observers) as ended_with:  # type: ignore[arg-type]
        folder.validation(0, 5.5)
        for first in range(0, SEEN, 16):
            run.train(folder, steps(first, first + 16))
        folder.event(Event(SEEN, "fired", {"index": 4.0, "loss": 3.0}))
        during()
        made = decision(1, DECISION, SEEN, np.random.default_rng(0), verify=6)
        write_decision(path, made)
        detail = {"number": 1, "folder": f"branches/{DECISION}", "accepted": True, "reason": "good"}
        folder.rewound(DECISION)
        folder.event(Event(SEEN, "rewind", {"to": DECISION}))
        folder.event(Event(DECISION, "decision", detail))
        run.train(folder, steps(DECISION, STEPS, line=1))
        folder.validation(STEPS, 2.25)
        ended = summary("budget spent", STEPS)
        folder.finish(ended)
        ended_with(ended)
    return path


def branches(path: Path) -> list[list[float | None]]:
    """The losses of each branch of the decision."""
    found = json.loads((path / "branches" / str(DECISION) / "decision.json").read_text())
    return [branch["losses"] for branch in found["branches"]]
