"""The trackers that a configuration names, ready to follow a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trainenv.config.schema import TrainingConfig
from trainenv.records.observer import Observer
from trainenv.trackers.contract import Tracker
from trainenv.trackers.live import LiveTracker
from trainenv.trackers.mlflow import MLflow
from trainenv.trackers.tensorboard import TensorBoard
from trainenv.trackers.trackio import Trackio
from trainenv.trackers.wandb import WandB
from trainenv.trackers.webhook import Webhook

TRACKERS: Mapping[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def open_trackers(config: TrainingConfig) -> list[Observer]:
    """Return an observer for each tracker of a configuration, and one for its alerts.

    Raises:
        UserError: The package of a tracker is not installed.
    """
    found: list[Observer] = [LiveTracker(name, TRACKERS[name]()) for name in config.trackers]
    if config.alerts.webhook is not None:
        found.append(LiveTracker("alerts", Webhook(config.alerts.webhook)))
    return found
