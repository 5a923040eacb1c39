"""Methods and jobs of the tests with Ray; importable by its processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from trainenv import TrainingRun
from trainenv.compare.allowed_flops import allowance
from trainenv.compare.contract import Stop, Watch
from trainenv.config.schema import RunConfig


def trained(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Train the run without any steering, and leave its loss."""
    run = TrainingRun.from_config(config)
    run.advance(config.steps)
    folder.mkdir()
    (folder / "loss").write_text(run.evaluate().hex(), encoding="utf-8")
    (folder / "flops").write_text(str(allowance(config)), encoding="utf-8")
    return {"ended": "budget spent"}


def dies_once(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Train the run as `trained` does, but be killed the first time, in every folder."""
    mark = folder.parent / "died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return trained(config, folder, watch, stop)


def clean_up_when_cancelled(job: Path) -> None:
    """Computes until it is cancelled, and leaves a mark then; Ray does not wake a long sleep."""
    try:
        (job / "started").touch()
        for _ in range(3000):
            time.sleep(0.02)
    finally:
        (job / "cleaned").touch()


def measured(folder: Path, /) -> dict[str, Any]:
    """Return the row of a run that `trained` left."""
    loss = float.fromhex((folder / "loss").read_text(encoding="utf-8"))
    flops = float((folder / "flops").read_text(encoding="utf-8"))
    return {
        "ended": "budget spent",
        "steps": 1,
        "final_loss": loss,
        "log_final_loss": loss,
        "instability": 0.0,
        "recovery": None,
        "flops": flops,
        "total_flops": flops,
        "wasted": 0.0,
        "drafting": 0.0,
        "decisions": None,
    }
