"""Export of recorded runs to experiment trackers, one file a tracker.

write_tensorboard(Path("runs/mine"), Path("runs/mine/tensorboard"))
"""

from trainenv.trackers.tensorboard import write_tensorboard

__all__ = ["write_tensorboard"]
