"""Whole configurations: YAML → frozen, validated values.

A configuration is a preset's name (`tiny`), the path of a YAML file, or a `RunConfig`. A file may
start from another with `extends: tiny` and state only what differs. An unknown key is refused, and
the nearest valid one is named. Step counts are in optimizer steps. `trainenv config`
prints the description of each key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from trainenv.config.branching import ActionPart, BranchingConfig, BranchingSettings, Trigger
from trainenv.config.corpus import CORPUS_PATHS, CorpusConfig, with_whole_paths
from trainenv.config.environment import EnvironmentConfig, InterventionConfig
from trainenv.config.model import ModelConfig
from trainenv.config.monitor import MonitorConfig, UncertaintyConfig
from trainenv.config.objective import ObjectiveConfig
from trainenv.config.optimization import ClipConfig, OptimizerConfig, ScheduleConfig
from trainenv.config.presets import find, merge, nest, resolve, with_new_keys
from trainenv.config.saving import CheckpointConfig, ValidationConfig
from trainenv.config.section import Config, Count, CountOrZero, field_at, validate
from trainenv.config.span_corruption import SpanCorruptionConfig
from trainenv.config.stressors import Plant, PlantKind, StressorConfig
from trainenv.config.tasks import TaskConfig
from trainenv.config.tracking import AlertConfig, TrackerName

__all__ = [
    "CORPUS_PATHS",
    "ActionPart",
    "AlertConfig",
    "BranchingConfig",
    "BranchingSettings",
    "CheckpointConfig",
    "ClipConfig",
    "Config",
    "CorpusConfig",
    "EnvironmentConfig",
    "InterventionConfig",
    "ModelConfig",
    "MonitorConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "Plant",
    "PlantKind",
    "RunConfig",
    "ScheduleConfig",
    "SpanCorruptionConfig",
    "StressorConfig",
    "TaskConfig",
    "TrainingConfig",
    "Trigger",
    "UncertaintyConfig",
    "ValidationConfig",
    "takes_text",
    "validate",
    "with_whole_paths",
]


class TrainingConfig(Config):
    """Training of any run, also of one with a model and data of your own."""

    name: Annotated[str, Field(pattern=r"^[^/\\\\]+$")] = Field(
        default="run",
        description="Name of the run and of its folder in `runs`. A YAML file without it has its"
        " own file name.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0,
        description="Random seed of weights, data order and stressors, from 0 to 2^63 − 1.",
    )
    steps: Count = Field(
        description="Budget in optimizer steps, at least 1. Compute that goes into branches is"
        " taken off it."
    )
    accumulation: Count = Field(
        default=1,
        description="Number of micro-batches that a batch is split into, at least 1. More of them"
        " need less memory; the gradient is their mean.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Device of the run; `auto` takes the GPU where torch finds one. A model of your"
        " own stays where it is.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="Precision of the forward and backward pass; `bf16` and `fp16` use autocast,"
        " `fp16` with loss scaling. Weights are float32.",
    )
    deterministic: bool = Field(
        default=False,
        description="Use deterministic kernels only, which on a GPU may be slower. On a CPU all"
        " kernels used here are deterministic.",
    )
    threads: Count | None = Field(
        default=None,
        description="CPU threads of the run, at least 1. Another number rounds differently; the"
        " default is torch's own number.",
    )
    block_steps: Count = Field(
        default=16,
        description="Data indices that stay together when the data are reordered, at least 1.",
    )
    reset_warmup: CountOrZero = Field(
        default=150,
        description="Steps over which the learning rate warms up again after a momentum reset; 0"
        " for none.",
    )
    schedule: ScheduleConfig = Field(
        default=ScheduleConfig(), description="Learning-rate schedule."
    )
    clip: ClipConfig = Field(default=ClipConfig(), description="Gradient clipping.")
    validation: ValidationConfig = Field(
        default=ValidationConfig(), description="Validation set and evaluations."
    )
    checkpoints: CheckpointConfig = Field(
        default=CheckpointConfig(), description="Checkpoints on disk."
    )
    monitor: MonitorConfig = Field(
        default_factory=MonitorConfig, description="Telemetry and the uncertainty index."
    )
    interventions: InterventionConfig = Field(
        default=InterventionConfig(), description="Action space and its bounds."
    )
    environment: EnvironmentConfig = Field(
        default=EnvironmentConfig(), description="Gymnasium environment."
    )
    branching: BranchingConfig = Field(
        default=BranchingConfig(), description="Decisions of the branching agent."
    )
    trackers: tuple[TrackerName, ...] = Field(
        default=(),
        description="Experiment trackers that follow the run live. One that fails never disturbs"
        " the run.",
    )
    alerts: AlertConfig = Field(
        default=AlertConfig(), description="Messages at incidents of the run."
    )

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_or_several(cls, trackers: Any) -> Any:
        """Take names as one text, as in `--set trackers=tensorboard,mlflow`."""
        if isinstance(trackers, str):
            return [name.strip() for name in trackers.split(",") if name.strip()]
        return trackers

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        """Check that a folder can have the name: by default a run is recorded in one."""
        if name in (".", "..") or "\0" in name:
            raise ValueError(f"expected the name of a folder, found {name!r}; give another")
        return name


class RunConfig(TrainingConfig):
    """A whole run, from the corpus to the optimizer."""

    distributed: Literal["none", "ddp", "fsdp2"] = Field(
        default="none",
        description="Training of one model by the processes that `torchrun` has started: `ddp`"
        " keeps a whole model in each, `fsdp2` a part of it. They share the rows of each"
        " micro-batch.",
    )
    batch_size: Count = Field(
        description="Sequences in the batch of one optimizer step; a multiple of `accumulation`."
    )
    model: ModelConfig = Field(description="Model that is trained.")
    corpus: CorpusConfig = Field(default=CorpusConfig(), description="Text and tokenizer.")
    tasks: TaskConfig = Field(default=TaskConfig(), description="Samples of tasks.")
    optimizer: OptimizerConfig = Field(description="AdamW.")
    stressors: StressorConfig = Field(
        default=StressorConfig(), description="Planted causes of instability."
    )
    span_corruption: SpanCorruptionConfig = Field(
        default=SpanCorruptionConfig(),
        description="Training task where `model.architecture` is `t5`.",
    )
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="Training loss.")

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulation"
                f" ({self.accumulation})"
            )
        micro = self.batch_size // self.accumulation
        if self.stressors.lengthens and micro % self.stressors.long_factor:
            raise ValueError(
                f"with long sequences, batch_size ÷ accumulation ({micro}) must be a multiple of "
                f"stressors.long_factor ({self.stressors.long_factor})"
            )
        if self.objective.kind == "mtp" and self.objective.heads > self.model.context:
            raise ValueError(
                f"objective.heads ({self.objective.heads}) must be at most model.context "
                f"({self.model.context})"
            )
        if self.objective.kind == "mtp" and self.model.architecture == "t5":
            raise ValueError(
                "a T5 is trained by span corruption, and multi-token prediction needs a model that "
                "predicts the next token; set objective.kind: next_token"
            )
        if self.objective.kind == "mtp" and self.distributed != "none":
            raise ValueError(
                "several processes can't train multi-token prediction, whose heads are outside of "
                "the model's own forward pass; set distributed: none, or objective.kind: next_token"
            )
        if self.distributed == "fsdp2" and self.optimizer.name in (
            "adafactor",
            "muon",
            "adamw_8bit",
        ):
            raise ValueError(
                f"optimizer.name {self.optimizer.name} updates a whole matrix at once, and with "
                "distributed fsdp2 each process has a part of it; take adamw, adam, sgd or "
                "schedule_free, or distributed: ddp"
            )
        if self.distributed == "fsdp2" and self.precision == "fp16":
            raise ValueError(
                "with distributed fsdp2, each process would scale the loss of its part by itself; "
                "set precision: bf16"
            )
        if self.objective.kind == "mtp" and self.precision == "fp16":
            raise ValueError(
                "multi-token prediction computes gradients before the loss is scaled, so that fp16 "
                "would lose small ones; set precision: bf16"
            )
        return self

    @classmethod
    def load(
        cls, source: str | Path | RunConfig, overrides: Mapping[str, Any] | None = None
    ) -> RunConfig:
        """Load a configuration, with `overrides` on top.

        Args:
            source: Name of a preset, path of a YAML file, or a configuration.
            overrides: Values by key: nested mappings, or dotted keys such as `optimizer.lr`.

        Raises:
            UserError: There is no such preset, file or key (the nearest valid one is named), or a
                value is out of range.
        """
        if isinstance(source, RunConfig):
            values = source.model_dump(mode="python")
            origin = source.name
        else:
            values = resolve(find(str(source)))
            origin = str(source)
        for key, value in (overrides or {}).items():
            values = merge(values, with_new_keys(nest(key.split("."), value)))
        return validate(cls, values, origin)


def takes_text(key: str) -> bool:
    """Tell if the value of a dotted key of `RunConfig` is text: a name, a path or a choice."""
    field = field_at(RunConfig, key)
    if field is None:
        return False
    kinds = get_args(field.annotation) or (field.annotation,)
    return all(kind in (str, Path, type(None)) or isinstance(kind, str) for kind in kinds)
