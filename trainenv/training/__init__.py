"""One optimizer step and everything it needs: `trainenv.TrainingRun` is made of these parts.

Data order and micro-batches, forward and backward passes, learning rates, optimizers, numeric
settings, snapshots, forks, and the ledger of FLOPs.
"""

from trainenv.training.history import history_of
from trainenv.training.ledger import Ledger

__all__ = ["Ledger", "history_of"]
