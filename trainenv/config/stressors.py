"""Keys of the section `stressors`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainenv.config.section import Config, Count, CountOrZero, Positive, Rate

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
    """One event planted on purpose."""

    at: CountOrZero = Field(
        description="First data index that is hit, from 0. For `lr_spike` and `lost_moments` it is"
        " the first step."
    )
    kind: PlantKind = Field(description="Stressor that is planted.")
    steps: Count = Field(
        default=1, description="Number of data indices in a row that are hit, or of steps."
    )
    size: Positive = Field(
        default=1.0,
        description="Strength, above 0: for `lr_spike` the factor on the learning rate, for"
        " stressors of tokens the share of positions, at most 1. `long_sequence` and"
        " `lost_moments` ignore it.",
    )


class StressorConfig(Config):
    """Planted causes of instability. All are off by default."""

    rare_tokens: Rate = Field(
        default=0.0,
        description="Share of batches in which runs of 16 tokens are replaced by rare ones, from 0"
        " to 1.",
    )
    long_sequence: Rate = Field(
        default=0.0,
        description="Share of batches that have fewer, `stressors.long_factor` times longer"
        " sequences, from 0 to 1. They have as many tokens as the others.",
    )
    artefacts: Rate = Field(
        default=0.0,
        description="Share of batches with damaged text (mojibake, tokens dropped and doubled),"
        " from 0 to 1.",
    )
    block_shuffle: Rate = Field(
        default=0.0,
        description="Share of each epoch, in one stretch, in which blocks of 16 tokens are shuffled"
        " within their sequence, from 0 to 1.",
    )
    harsh_warmup_steps: CountOrZero = Field(
        default=0,
        description="Steps at the start with `stressors.harsh_warmup_lr` times the planned learning"
        " rate; 0 for none.",
    )
    harsh_warmup_lr: Positive = Field(
        default=4.0,
        description="Factor on the learning rate in these steps, above 0.",
    )
    long_factor: Annotated[int, Field(ge=2)] = Field(
        default=4,
        description="Length of a long sequence divided by `model.context`, at least 2.",
    )
    planted: tuple[Plant, ...] = Field(
        default=(),
        description="Single events, each with the keys `at`, `kind`, `steps` and `size`.",
    )

    @property
    def lengthens(self) -> bool:
        """True if any batch may be longer than the context."""
        return self.long_sequence > 0 or any(p.kind == "long_sequence" for p in self.planted)
