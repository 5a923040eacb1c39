"""A language-model training run as an environment that can be saved, forked, simulated and steered.

    run = trainenv.TrainingRun.from_config("tiny")
    trainenv.train(run, "runs/mine", callback=trainenv.branching())

Importing this package registers the Gymnasium environments
`trainenv/GPT2-{Tiny,Small,Medium,Large}-v0`, `trainenv/Synthetic-v0` and `trainenv/Decoding-v0`.
Heavy modules are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium

from trainenv.tools.version import VERSION
from trainenv.types import Intervention, LossSum, Reading, Snapshot, Telemetry, UserError

if TYPE_CHECKING:
    from trainenv import clipping, wrappers
    from trainenv.checkpoints.store import CheckpointStore
    from trainenv.cli.progress import progress
    from trainenv.composition.default_loop import branching
    from trainenv.composition.tracked import train
    from trainenv.config.schema import BranchingConfig, RunConfig, TrainingConfig
    from trainenv.integrations.huggingface import attach
    from trainenv.integrations.own_loop import steer
    from trainenv.loop import drive
    from trainenv.monitor.uncertainty import UncertaintyIndex
    from trainenv.records.run_folder import RunFolder
    from trainenv.report.run.run_report import RunReport
    from trainenv.run import TrainingRun

__version__ = VERSION

__all__ = [
    "BranchingConfig",
    "CheckpointStore",
    "Intervention",
    "LossSum",
    "Reading",
    "RunConfig",
    "RunFolder",
    "RunReport",
    "Snapshot",
    "Telemetry",
    "TrainingConfig",
    "TrainingRun",
    "UncertaintyIndex",
    "UserError",
    "attach",
    "branching",
    "clipping",
    "drive",
    "progress",
    "steer",
    "train",
    "wrappers",
]

_LAZY = {
    "BranchingConfig": "trainenv.config.schema",
    "CheckpointStore": "trainenv.checkpoints.store",
    "RunConfig": "trainenv.config.schema",
    "RunFolder": "trainenv.records.run_folder",
    "RunReport": "trainenv.report.run.run_report",
    "TrainingConfig": "trainenv.config.schema",
    "TrainingRun": "trainenv.run",
    "UncertaintyIndex": "trainenv.monitor.uncertainty",
    "attach": "trainenv.integrations.huggingface",
    "branching": "trainenv.composition.default_loop",
    "drive": "trainenv.loop",
    "progress": "trainenv.cli.progress",
    "steer": "trainenv.integrations.own_loop",
    "train": "trainenv.composition.tracked",
}
_MODULES = ("agents", "clipping", "integrations", "planners", "worldmodel", "wrappers")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _MODULES:
        return import_module(f"trainenv.{name}")
    raise AttributeError(f"module 'trainenv' has no attribute {name!r}")


for _size in ("Tiny", "Small", "Medium", "Large"):
    gymnasium.register(
        id=f"trainenv/GPT2-{_size}-v0",
        entry_point="trainenv.envs.registered:training",
        kwargs={"config": _size.lower()},
    )
gymnasium.register(id="trainenv/Synthetic-v0", entry_point="trainenv.envs.registered:synthetic")
gymnasium.register(id="trainenv/Decoding-v0", entry_point="trainenv.envs.registered:decoding")
