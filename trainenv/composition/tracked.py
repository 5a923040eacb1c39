"""`train` with the experiment trackers and alerts that the run's configuration names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainenv import loop
from trainenv.config.schema import TrainingConfig
from trainenv.records.observer import Observer
from trainenv.records.run_folder import RunFolder
from trainenv.trackers import open_trackers
from trainenv.types import Run


def train(
    run: Run,
    folder: RunFolder | str | Path,
    *,
    callback: loop.Callback | None = None,
    watch: loop.Watch = lambda run, window: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train until the budget is spent, the run diverges or `stop()` is true; return the summary.

    As `trainenv.loop.train`, with a thread for each tracker in `run.config.trackers` and for the
    alerts. A tracker that fails is named in a warning, and the run continues without it.

    Args:
        run: Run to train, from the step it is at.
        folder: Folder that records the run, or the path of a new one.
        callback: Observer that may act on the run after each block of telemetry.
        watch: Function called with the run and its newest telemetry after each block.
        stop: Function asked after each block; true ends the training.

    Raises:
        UserError: As `trainenv.loop.train`, or the package of a tracker is not installed.
    """
    config = getattr(run, "config", None)
    observers = list[Observer]()
    processes = getattr(run, "processes", None)
    first = processes is None or processes.rank == 0  # of several processes, one reports
    if first and isinstance(config, TrainingConfig):  # else `loop.train` says that it is no run
        observers = open_trackers(config)
    return loop.train(run, folder, callback=callback, watch=watch, stop=stop, observers=observers)
