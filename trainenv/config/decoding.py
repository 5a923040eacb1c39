"""Keys of a configuration of model pairs for decoding: models, pairs, corpora and traces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainenv.config.presets import configs_folder, listed, read_yaml
from trainenv.config.section import Config, Count, CountOrZero, NonNegative, Positive, validate
from trainenv.tools.paths import absolute, expanded
from trainenv.tools.spelling import nearest
from trainenv.types import UserError

FileName = Annotated[str, Field(pattern=r"^[\w.-]+$")]


class OwnModelConfig(Config):
    """GPT-2 that is trained here, on the training text of all corpora."""

    width: Count = Field(description="Width of the residual stream in features.")
    layers: Count = Field(description="Number of transformer blocks, at least 1.")
    heads: Count = Field(description="Number of attention heads; it must divide `width`.")
    steps: Count = Field(description="Optimizer steps of its training, at least 1.")
    batch_size: Count = Field(default=8, description="Sequences in a batch, at least 1.")
    lr: Positive = Field(default=2e-3, description="Largest learning rate, above 0.")

    @model_validator(mode="after")
    def _fits(self) -> OwnModelConfig:
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, found width {self.width} and heads"
                f" {self.heads}"
            )
        return self


class PairConfig(Config):
    """Target and draft that decode together."""

    name: FileName = Field(description="Name of the pair, and of its files.")
    target: str = Field(
        description="Target: the name of a model of `models`, a folder, or a name on the hub."
    )
    target_gguf: str | None = Field(
        default=None, description="Name of a GGUF file in the target's folder that has its weights."
    )
    draft: str | None = Field(
        default=None,
        description="Draft: the name of a model of `models`, a folder, or a name on the hub.",
    )
    first_layers: Count | None = Field(
        default=None,
        description="Number of the target's own first layers that draft, in place of `draft`.",
    )

    @model_validator(mode="after")
    def _one_draft(self) -> PairConfig:
        if (self.draft is None) == (self.first_layers is None):
            raise ValueError(
                f"pair {self.name} must have either draft or first_layers, found "
                f"{'neither' if self.draft is None else 'both'}"
            )
        return self


class PromptsConfig(Config):
    """Corpus that prompts are cut from."""

    name: FileName = Field(description="Name of the corpus, and of its files.")
    source: Literal["library", "prose", "arithmetic", "text", "wikitext-103", "c4", "lambada"] = (
        Field(
            description="Source of the text. `library` is the code of Python's standard library,"
            " `prose` its documentation, `arithmetic` is generated; `text` reads `path`; the"
            " others come from the hub, or from a local copy at `path`."
        )
    )
    path: Path | None = Field(
        default=None, description="Text file or folder, or local copy of a corpus of the hub."
    )

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        return absolute(value)

    @model_validator(mode="after")
    def _has_text(self) -> PromptsConfig:
        if self.source == "text" and self.path is None:
            raise ValueError(f"corpus {self.name} with source text must have a path, found none")
        return self


class TraceConfig(Config):
    """Extent of the traces."""

    rows: Count = Field(default=64, description="Texts of a trace, at least 1.")
    prompt: Count = Field(default=48, description="Tokens of each prompt, at least 1.")
    positions: Annotated[int, Field(ge=2)] = Field(
        default=128, description="Tokens that the target generates after each prompt, at least 2."
    )
    depth: Annotated[int, Field(ge=1, le=16)] = Field(
        default=16, description="Greatest draft length that can be replayed, from 1 to 16."
    )
    stride: Count = Field(
        default=8,
        description="Distance between positions with second blocks, at least 1; they are for the"
        " lossy rule.",
    )
    top_k: Count = Field(
        default=16, description="Probabilities kept of each distribution, at least 1."
    )
    rows_at_once: Count = Field(
        default=8, description="Rows in one call of a model, at least 1; more need more memory."
    )
    temperature: NonNegative = Field(
        default=1.0, description="Sampling temperature, at least 0; 0 takes the most likely token."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Probability mass that sampling keeps, above 0, at most 1."
    )
    seed: CountOrZero = Field(default=0, description="Random seed of prompts, texts and blocks.")


class PairsConfig(Config):
    """Model pairs and corpora, whose product are the tasks of tuning thresholds."""

    models: Mapping[str, OwnModelConfig] = Field(
        default={}, description="Models that are trained here, by name."
    )
    pairs: tuple[PairConfig, ...] = Field(min_length=1, description="Model pairs, at least one.")
    corpora: tuple[PromptsConfig, ...] = Field(
        min_length=1, description="Corpora of the prompts, at least one."
    )
    vocab_size: Annotated[int, Field(ge=257)] = Field(
        default=1024, description="Tokens of the tokenizer of `models`, at least 257."
    )
    context: Annotated[int, Field(ge=2)] = Field(
        default=256, description="Tokens in a training sequence of `models`, at least 2."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device of the models; `auto` takes the GPU where there is one."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="Type of the weights that are loaded."
    )
    trace: TraceConfig = Field(default=TraceConfig(), description="Extent of the traces.")

    @model_validator(mode="after")
    def _names_differ(self) -> PairsConfig:
        for kind, named in (("pairs", self.pairs), ("corpora", self.corpora)):
            names = [one.name for one in named]
            if len(set(names)) < len(names):
                raise ValueError(f"{kind} must have different names, found {listed(names)}")
        needed = self.trace.prompt + self.trace.positions + 2 * self.trace.depth + 1
        if self.models and needed > self.context:
            raise ValueError(
                f"context must have room for prompt, text and blocks ({needed} tokens), found "
                f"{self.context}"
            )
        return self

    @classmethod
    def load(cls, source: str | Path | PairsConfig) -> PairsConfig:
        """Load a configuration of pairs.

        Args:
            source: Name of a shipped configuration (`own`, `opt`), path of a YAML file, or a
                configuration.

        Raises:
            UserError: There is no such file or key, or a value is out of range.
        """
        if isinstance(source, PairsConfig):
            return source
        path = expanded(source)
        if path.suffix not in (".yaml", ".yml"):
            shipped = {file.stem: file for file in sorted(shipped_folder().glob("*.yaml"))}
            if str(source) not in shipped:
                raise UserError(
                    f"unknown pairs {str(source)!r}{nearest(str(source), shipped)}; shipped are: "
                    f"{listed(list(shipped))}; or give a path ending in .yaml"
                )
            path = shipped[str(source)]
        values: dict[str, Any] = read_yaml(path)
        return validate(cls, values, str(source))


def shipped_folder() -> Path:
    """Find the folder of the shipped configurations of pairs."""
    return configs_folder() / "pairs"
