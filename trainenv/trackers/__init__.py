"""Experiment trackers that follow a run live, one file a tracker.

    trainenv.train(TrainingRun.from_config(config), "runs/mine")   # config.trackers names them
    write_tensorboard(Path("runs/mine"), Path("runs/mine/tensorboard"))   # from the record

`contract` says what a tracker gets, `live` feeds it from a thread of its own, `opening` makes those
that a configuration names, `webhook` posts incidents.
"""

from trainenv.trackers.contract import BranchRun, RunStart, Step, Tracker
from trainenv.trackers.live import LiveTracker
from trainenv.trackers.opening import open_trackers
from trainenv.trackers.tensorboard import write_tensorboard

__all__ = [
    "BranchRun",
    "LiveTracker",
    "RunStart",
    "Step",
    "Tracker",
    "open_trackers",
    "write_tensorboard",
]
