"""Make the shard of one trunk: train it, branch it, write its tables."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from trainenv.tools.error_text import describe_error
from trainenv.types import Fold
from trainenv.worldmodel.dataset.contract import MakeRun
from trainenv.worldmodel.dataset.design import Design
from trainenv.worldmodel.dataset.store import Shards
from trainenv.worldmodel.dataset.tables import collect
from trainenv.worldmodel.dataset.texts import Texts
from trainenv.worldmodel.dataset.trunks import Trunk


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """Outcome of making a shard.

    Attributes:
        error: Fault in words; empty if the shard was written.
        steps: Optimizer steps trained, of the trunk and its branches; 0 after a fault.
        core_seconds: Seconds of processor time used.
    """

    error: str
    steps: int = 0
    core_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ShardMaker:
    """Function of a trunk that writes its shard; holds all that a worker process needs for it.

    Attributes:
        folder: Folder of the data set.
        design: Design of the branches.
        texts: Corpora that trunks may train on.
        make_run: Function from configuration overrides to a fresh run.
        fold: Function that trains several runs as one batched program; None: one after the other.
    """

    folder: Path
    design: Design
    texts: Texts
    make_run: MakeRun
    fold: Fold | None = None

    def __call__(self, trunk: Trunk) -> ShardResult:
        """Write the shard of a trunk. A run that fails is reported in the result, not raised."""
        started = time.process_time()
        try:
            tables = collect(trunk, self.design, self.make_run, self.texts, self.fold)
            Shards(self.folder).write(trunk.name, tables)
        except Exception as error:  # whatever a run may raise: the other trunks are still made
            seconds = time.process_time() - started
            return ShardResult(error=describe_error(error), core_seconds=seconds)
        steps = len(tables["trunk_steps"]) + len(tables["branch_steps"])
        return ShardResult(error="", steps=steps, core_seconds=time.process_time() - started)
