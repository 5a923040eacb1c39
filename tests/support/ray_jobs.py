"""Methods and jobs of the tests with Ray; importable by its processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.support.compare_fakes import _leave
from trainenv import TrainingRun
from trainenv.compare.contract import Stop, Watch
from trainenv.config.schema import RunConfig


def trained(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Train the run without any steering, and leave its loss."""
    run = TrainingRun.from_config(config)
    run.advance(config.steps)
    return _leave(config, folder, run.evaluate())


def dies_once(config: RunConfig, folder: Path, watch: Watch, stop: Stop, /) -> dict[str, Any]:
    """Train the run as `trained` does; the first process of a comparison that tries is killed."""
    mark = folder.parents[2] / "died"
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
