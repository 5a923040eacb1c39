"""YAML → frozen, validated configuration. An unknown key names the nearest valid one.

A configuration is a preset's name (`tiny`), the path of a YAML file, or a `RunConfig`. A file may
start from another with
`extends: tiny` and state only what differs. Every step count is in optimizer steps, every rate a
share of batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainenv.config.presets import find, listed, merge, nest, read_yaml, resolve, with_new_keys
from trainenv.tools.paths import absolute
from trainenv.tools.spelling import nearest
from trainenv.types import CLIP_NAMES, ClipName, UserError

Rate = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, values: Any) -> Any:
        """NumPy's numbers, and arrays and tensors, as Python's: settings often come out of a sweep."""
        return (
            {key: _plain(value) for key, value in values.items()}
            if isinstance(values, Mapping)
            else values
        )


C = TypeVar("C", bound=Config)


class ModelConfig(Config):
    """A GPT-2.

    `positions` defaults to `context`, times `long_factor` where long sequences are among the
    stressors.
    """

    width: Count
    layers: Count
    heads: Count
    context: Annotated[int, Field(ge=2)]
    positions: Count | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    init: Literal["gpt2", "stable"] = "gpt2"
    activation_checkpointing: bool = False

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, found width {self.width} and heads {self.heads}"
            )
        if self.positions is not None and self.positions < self.context:
            raise ValueError(
                f"positions must be at least context ({self.context}), found {self.positions}"
            )
        return self


CORPUS_PATHS = ("path", "tokenizer_path", "cache")


class CorpusConfig(Config):
    """Where text comes from and how it becomes tokens.

    `stdlib` is the text of Python's own standard library. `text` reads the file, or every file
    below the folder, at `path`. `wikitext-103` and `c4` are loaded with `datasets`, from the hub or
    from a local copy at `path`; `c4` streams.

    Paths are kept absolute, so that a recorded configuration means the same files wherever it is
    read: `~` is the home folder, and a relative path starts from the current folder, also one that
    stands in a YAML file.
    """

    name: Literal["stdlib", "text", "wikitext-103", "c4"] = "stdlib"
    path: Path | None = None
    tokenizer: Literal["bytes", "bpe", "gpt2"] = "bytes"
    tokenizer_path: Path | None = None
    vocab_size: Annotated[int, Field(ge=257)] = 4096
    max_tokens: Count | None = None
    cache: Path | None = None

    @field_validator(*CORPUS_PATHS, mode="before")
    @classmethod
    def _no_empty_path(cls, value: Any) -> Any:
        """An empty path would be the current folder."""
        if value == "":
            raise ValueError("expected a path, found an empty one; give one or leave it out")
        return value

    @field_validator(*CORPUS_PATHS)
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else absolute(value)


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019); no weight decay on biases, norms and embeddings of positions."""

    lr: Positive
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.95,
    )
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1


class ScheduleConfig(Config):
    """Learning rate over the budget: linear warm-up, then cosine, warm-up–stable–decay (`wsd`) or constant."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 100
    final: Rate = 0.1
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.2


class ClipConfig(Config):
    """The clip policy in force at the start, and hyperparameters by policy name."""

    policy: ClipName = "zclip"
    options: Mapping[ClipName, Mapping[str, float | str | bool | None]] = Field(
        default_factory=dict
    )

    def options_of(self, name: str) -> Mapping[str, Any]:
        """The hyperparameters of a policy that differ from its defaults."""
        return next((options for policy, options in self.options.items() if policy == name), {})


PlantKind = Literal[
    "rare_tokens",
    "long_sequence",
    "artefacts",
    "block_shuffle",
    "random_tokens",
    "lr_spike",
    "lost_moments",
]


class Plant(Config):
    """One event planted on purpose: `kind` on `steps` data indices (`lr_spike` and `lost_moments`: steps) from `at` on."""

    at: Annotated[int, Field(ge=0)]
    kind: PlantKind
    steps: Count = 1
    size: Positive = 1.0


class StressorConfig(Config):
    """What provokes instability: the shares of batches hit, and the harsh warm-up.

    All off by default.
    """

    rare_tokens: Rate = 0.0
    long_sequence: Rate = 0.0
    artefacts: Rate = 0.0
    block_shuffle: Rate = 0.0
    harsh_warmup_steps: Annotated[int, Field(ge=0)] = 0
    harsh_warmup_lr: Positive = 4.0
    long_factor: Annotated[int, Field(ge=2)] = 4
    planted: tuple[Plant, ...] = ()

    @property
    def lengthens(self) -> bool:
        """Whether any batch may be longer than the context."""
        return self.long_sequence > 0 or any(p.kind == "long_sequence" for p in self.planted)


class ValidationConfig(Config):
    """The fixed validation set, in sequences of `context` tokens; evaluated every `every` steps (0: only when asked)."""

    every: Annotated[int, Field(ge=0)] = 1000
    sequences: Count = 64


class CheckpointConfig(Config):
    """When a run's state is saved while it trains, and what is kept of it.

    A run that ends or is stopped saves the exact state.

    `every` is in steps; `moments: 8bit` halves the files and rounds the optimizer's moments,
    `exact` keeps the very bits. The newest `keep_last` files stay, or fewer where they exceed
    `max_bytes`. A save that fails ends the run (`on_error: raise`) or is only reported (`warn`).
    """

    every: Count = 1000
    keep_last: Count = 8
    moments: Literal["8bit", "exact"] = "8bit"
    max_bytes: Count | None = None
    on_error: Literal["raise", "warn"] = "raise"


class UncertaintyConfig(Config):
    """The uncertainty index.

    Its numbers live in `configs/uncertainty.yaml`, which explains each.
    """

    window: Annotated[int, Field(ge=8)]
    decay: Annotated[float, Field(gt=0, lt=1)]
    min_history: Annotated[int, Field(ge=4)]
    weights: Mapping[
        Literal["volatility", "entropy", "disagreement"], Annotated[float, Field(ge=0)]
    ]
    threshold: Positive
    consecutive: Count
    single: Positive
    lenient: Annotated[float, Field(ge=1)]
    lenient_steps: Annotated[int, Field(ge=0)]
    lenient_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    refractory: Annotated[int, Field(ge=0)]
    shift_drift: Annotated[float, Field(ge=0)] = 0.5
    shift_limit: Positive = 8.0

    @model_validator(mode="after")
    def _ordered(self) -> UncertaintyConfig:
        if self.single < self.threshold:
            raise ValueError(
                f"single ({self.single}) must be at least threshold ({self.threshold})"
            )
        if (
            set(self.weights) != {"volatility", "entropy", "disagreement"}
            or not sum(self.weights.values()) > 0
        ):
            raise ValueError(
                f"weights must name volatility, entropy and disagreement, not all 0, found {dict(self.weights)}"
            )
        if self.min_history > self.window:
            raise ValueError(
                f"min_history ({self.min_history}) must be at most window ({self.window})"
            )
        return self


class MonitorConfig(Config):
    """Telemetry is read from the device every `block` steps; the probe looks inside the model every `probe_every` (0: never).

    The hypergradient is taken at every second look, since it passes over all of the optimizer's
    state; for the first three times the length of the warm-up at least 16 times in each, where it
    shows whether the learning rate suits.
    """

    enabled: bool = True
    block: Count = 16
    probe_every: Annotated[int, Field(ge=0)] = 8
    probe_sequences: Count = 2
    uncertainty: UncertaintyConfig = Field(
        default_factory=lambda: UncertaintyConfig(**read_yaml(find("uncertainty")))
    )

    @field_validator("uncertainty", mode="before")
    @classmethod
    def _over_the_defaults(cls, value: Any) -> Any:
        """What is stated stands on top of `configs/uncertainty.yaml`."""
        return merge(read_yaml(find("uncertainty")), value) if isinstance(value, Mapping) else value


class InterventionConfig(Config):
    """The action space: the values of each part, the bounds of what is in force, and which optional parts are allowed."""

    lr_scales: tuple[Positive, ...] = (1.0, 0.8, 0.9, 1.1)
    weight_decay_scales: tuple[Positive, ...] = (1.0, 0.5, 2.0)
    lr_bounds: tuple[Positive, Positive] = (0.01, 10.0)
    weight_decay_bounds: tuple[Positive, Positive] = (0.125, 8.0)
    allow_momentum_reset: bool = True
    allow_spam: bool = False
    allow_data_reorder: bool = False
    allow_skip_batch: bool = False

    @model_validator(mode="after")
    def _neutral_first(self) -> InterventionConfig:
        for name in ("lr_scales", "weight_decay_scales"):
            if getattr(self, name)[:1] != (1.0,):
                raise ValueError(
                    f"{name} must start with 1.0, so that the action of all zeros does nothing"
                )
        for name in ("lr_bounds", "weight_decay_bounds"):
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise ValueError(f"{name} must enclose 1.0, found ({low}, {high})")
        return self


class EnvironmentConfig(Config):
    """The environment around the run: `decision_steps` optimizer steps a decision, charges in nats of log validation loss."""

    decision_steps: Count = 50
    instability_charge: Annotated[float, Field(ge=0)] = 0.001
    compute_charge: Annotated[float, Field(ge=0)] = 0.1
    divergence_loss: Positive = 2.0


Trigger = Literal["warmup", "harm", "fired", "regression", "checkpoint"]
ActionPart = Literal[
    "lr_scale", "weight_decay_scale", "clip", "momentum_reset", "data_reorder", "skip_batch"
]


class BranchingConfig(Config):
    """When the branching agent drafts and verifies, and what it may spend.

    Steps are of a run of 16 000; presets scale them.

    It acts where the `warmup`, or what follows it, shows that the learning rate does not suit,
    where `harm` has begun, that many nats on the clean probe or more, where the uncertainty index
    has `fired`, where validation or stability has regressed, and every `every` steps, as continuous
    correction (`checkpoint`). Harm that has begun is gone round from a state before it, of which
    one is saved every `save_every` steps. Where half of what an alarm has done is still there
    `refractory_steps` steps later, the run goes back to `rewind` steps before the alarm. Forecasts
    look `horizon` steps ahead. The `top_k` best drafts that promise to be better than doing nothing
    by `min_gain` nats are trained for `verify_steps` and judged by `rule`. They raise the learning
    rate to at most `max_lr_factor` times the rate that the start of the run has found to suit. Of a
    draft that lowers it, the rule `agreement` asks `cut_gain` nats at once: a little better it
    always is at first. What is thrown away is at most `max_waste` of the budget. For
    `refractory_steps` steps after a decision no other alarm is answered; after `patience` decisions
    in a row that accepted nothing it waits twice as long between decisions, and after as many again
    it gives up. `rewind_points` rewind points are held in memory; with `replayable` each decision's
    start is on disk.

    Models too wide to be folded (on a CPU: above 48) are verified in turn, or over as many
    processes as there are `workers`, to the same bits. They take a core each, with `threads: 1`.

    Drafts change only the `parts` of an intervention that have measured well: a momentum reset or
    another weight decay looks good for a few steps and costs at the end. With `default_clip` ZClip
    is put in force at the start where nothing clips.
    """

    triggers: tuple[Trigger, ...] = ("warmup", "harm", "fired", "regression", "checkpoint")
    parts: tuple[ActionPart, ...] = ("lr_scale", "clip")
    default_clip: bool = True
    every: Count = 1000
    rewind: Count = 1000
    save_every: Count = 250
    harm: Positive = 0.1
    horizon: Annotated[int, Field(ge=4)] = 2000
    top_k: Count = 6
    workers: Annotated[int, Field(ge=0)] = 0
    verify_steps: Count = 50
    rule: Literal["agreement", "annealed", "better", "risk"] = "agreement"
    min_gain: Annotated[float, Field(ge=0)] = 0.001
    cut_gain: Annotated[float, Field(ge=0)] = 0.005
    max_lr_factor: Annotated[float, Field(ge=1)] = 2.0
    max_waste: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    refractory_steps: Annotated[int, Field(ge=0)] = 500
    patience: Count = 5
    rewind_points: Count = 8
    replayable: bool = True

    @model_validator(mode="before")
    @classmethod
    def _old_keys(cls, values: Any) -> Any:
        return with_new_keys(values, section="branching") if isinstance(values, Mapping) else values


class TrainingConfig(Config):
    """How any run is trained, whoever brings the model.

    `steps` is the budget, in optimizer steps' worth of compute.

    `threads` fixes the CPU threads of the run, and with them its bits; `block_steps` are the data
    indices that a reorder keeps together; after a momentum reset the learning rate warms up over
    `reset_warmup` steps.
    """

    name: Annotated[str, Field(pattern=r"^[^/\\\\]+$")] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Count
    accumulation: Count = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    deterministic: bool = False
    threads: Count | None = None
    block_steps: Count = 16
    reset_warmup: Annotated[int, Field(ge=0)] = 150
    schedule: ScheduleConfig = ScheduleConfig()
    clip: ClipConfig = ClipConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = Field(default_factory=MonitorConfig)
    interventions: InterventionConfig = InterventionConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    branching: BranchingConfig = BranchingConfig()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        """Runs are recorded in a folder of that name by default."""
        if name in (".", "..") or "\0" in name:
            raise ValueError(f"expected the name of a folder, found {name!r}; give another")
        return name


class RunConfig(TrainingConfig):
    """A run that is ours from the corpus to the optimizer: everything that it is made from."""

    batch_size: Count
    model: ModelConfig
    corpus: CorpusConfig = CorpusConfig()
    optimizer: OptimizerConfig
    stressors: StressorConfig = StressorConfig()

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulation ({self.accumulation})"
            )
        micro = self.batch_size // self.accumulation
        if self.stressors.lengthens and micro % self.stressors.long_factor:
            raise ValueError(
                f"with long sequences, batch_size ÷ accumulation ({micro}) must be a multiple of "
                f"stressors.long_factor ({self.stressors.long_factor})"
            )
        return self

    @classmethod
    def load(
        cls, source: str | Path | RunConfig, overrides: Mapping[str, Any] | None = None
    ) -> RunConfig:
        """A preset's name, a YAML file's path or a configuration, with `overrides` (nested, or dotted keys) on top.

        Raises:
            UserError: no such preset or file, no such key (the nearest valid one is named), or a
                value out of range.
        """
        values = (
            source.model_dump(mode="python")
            if isinstance(source, RunConfig)
            else resolve(find(str(source)))
        )
        for key, value in (overrides or {}).items():
            *path, last = key.split(".")
            values = merge(values, with_new_keys(nest([*path, last], value)))
        return validate(
            cls, values, str(source) if not isinstance(source, RunConfig) else source.name
        )


def validate(model: type[C], values: Mapping[str, Any], source: str) -> C:
    """`values` as `model`, or one sentence that says what is wrong where."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        # An unknown key first: where a key is misspelt, the right one is also missing.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        *above, last = [part for part in first["loc"] if part != "[key]"] or [""]
        where = ".".join(str(part) for part in (*above, last))
        if first["type"] == "extra_forbidden" or "[key]" in first["loc"]:
            valid = sorted(_keys_at(model, above))
            raise UserError(
                f"{source}: unknown key {where!r}{nearest(str(last), valid)}; valid here: {listed(valid)}"
            ) from None
        if first["type"] == "missing":
            raise UserError(
                f"{source}: {where} is missing; state it, or start the file with `extends: tiny`"
            ) from None
        reason = first["msg"].removeprefix("Value error, ")
        found = "" if first["type"] == "value_error" else f", found {first['input']!r}"
        if first["type"] in ("string_type", "path_type") and isinstance(
            first["input"], int | float | date
        ):
            found += "; quote it"  # YAML reads 007, on and 2024-01-01 as no text
        raise UserError(f"{source}: {where + ': ' if where else ''}{reason}{found}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return (
            type(value)(_plain(part) for part in value) if type(value) in (list, tuple) else value
        )
    return value.tolist() if hasattr(value, "tolist") else value


def with_whole_paths(corpus: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `CorpusConfig`, its paths absolute: to be recorded before they are validated."""
    paths = {
        key: corpus[key]
        for key in CORPUS_PATHS
        if isinstance(corpus.get(key), str | Path) and corpus[key] != ""
    }
    return {**corpus, **{key: str(absolute(path)) for key, path in paths.items()}}


def takes_text(key: str) -> bool:
    """Whether the value of a dotted key of `RunConfig` is text, whatever YAML would read it as: a name, a path, a choice."""
    *above, last = key.split(".")
    model: Any = RunConfig
    for part in above:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field is not None else None
    field = getattr(model, "model_fields", {}).get(last)
    if field is None:
        return False
    kinds = get_args(field.annotation) or (field.annotation,)
    return all(kind in (str, Path, type(None)) or isinstance(kind, str) for kind in kinds)


def _keys_at(model: type[Config], location: Sequence[int | str]) -> Iterator[str]:
    """The valid keys of the nested model that `location` points to."""
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, Config):
            model = annotation
        elif part == "planted" or isinstance(part, int):
            model = Plant
        elif part == "options":
            yield from CLIP_NAMES
            return
    yield from model.model_fields
