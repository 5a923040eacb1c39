"""Checkpoints: snapshots as files, safe against crashes and hostile bytes.

    with CheckpointStore("runs/mine/checkpoints", every=100) as store:
        store.save(run.snapshot())
    snapshot = store.load()

`store` keeps a folder of checkpoints, `file` reads and writes one, `schema` checks its content, and
`interop` exports weights to plain torch and loads them. A checkpoint is exact, or holds the moments
of the optimizer in 8 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainenv.checkpoints.names import FOLDER, MADE_OF
from trainenv.tools.lazy import lazy

if TYPE_CHECKING:
    from trainenv.checkpoints.header import BrokenCheckpoint, Header
    from trainenv.checkpoints.interop import export, load_weights
    from trainenv.checkpoints.manifest import Entry
    from trainenv.checkpoints.reader import Finding
    from trainenv.checkpoints.retention import Deletion
    from trainenv.checkpoints.store import CheckpointStore

__all__ = [
    "FOLDER",
    "MADE_OF",
    "BrokenCheckpoint",
    "CheckpointStore",
    "Deletion",
    "Entry",
    "Finding",
    "Header",
    "export",
    "load_weights",
]


__getattr__ = lazy(
    __name__,
    {
        "BrokenCheckpoint": "trainenv.checkpoints.header",
        "CheckpointStore": "trainenv.checkpoints.store",
        "Deletion": "trainenv.checkpoints.retention",
        "Entry": "trainenv.checkpoints.manifest",
        "Finding": "trainenv.checkpoints.reader",
        "Header": "trainenv.checkpoints.header",
        "export": "trainenv.checkpoints.interop",
        "load_weights": "trainenv.checkpoints.interop",
    },
)
