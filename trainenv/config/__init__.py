"""Configurations of runs: presets, YAML files and their validated values.

    config = RunConfig.load("tiny", {"optimizer.lr": 1e-3})     # a whole run
    config = TrainingConfig(steps=1000)                         # a run with a model of your own

Each section has a class of its own, in a file of its own. `describe.py` prints the description of
every key, as a table, as Markdown and as a JSON schema for editors.
"""

from trainenv.config.schema import (
    BranchingConfig,
    CheckpointConfig,
    ClipConfig,
    CorpusConfig,
    EnvironmentConfig,
    InterventionConfig,
    ModelConfig,
    MonitorConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    StressorConfig,
    TrainingConfig,
    UncertaintyConfig,
    ValidationConfig,
)

__all__ = [
    "BranchingConfig",
    "CheckpointConfig",
    "ClipConfig",
    "CorpusConfig",
    "EnvironmentConfig",
    "InterventionConfig",
    "ModelConfig",
    "MonitorConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "StressorConfig",
    "TrainingConfig",
    "UncertaintyConfig",
    "ValidationConfig",
]
