"""Keys of the section `model`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainenv.config.section import Config, Count


class ModelConfig(Config):
    """Size and initialisation of a GPT-2."""

    width: Count = Field(
        description="Width of the residual stream in features; a multiple of `model.heads`."
    )
    layers: Count = Field(description="Number of transformer blocks, at least 1.")
    heads: Count = Field(description="Number of attention heads; it must divide `model.width`.")
    context: Annotated[int, Field(ge=2)] = Field(
        description="Length of a training sequence in tokens, at least 2."
    )
    positions: Count | None = Field(
        default=None,
        description="Number of position embeddings, at least `model.context`. By default it is the"
        " context, multiplied by `stressors.long_factor` where long sequences are planted.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Dropout probability of embeddings, attention and residual branches, from 0 to"
        " below 1. The default turns dropout off.",
    )
    init: Literal["gpt2", "stable"] = Field(
        default="gpt2",
        description="Initial weights. `gpt2` is GPT-2's own scheme; `stable` has small sub-layers"
        " and scaled embeddings, against loss spikes (Takase 2024).",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="Compute activations again in the backward pass instead of keeping them: less"
        " memory, slower steps.",
    )

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, found width {self.width} and heads"
                f" {self.heads}"
            )
        if self.positions is not None and self.positions < self.context:
            raise ValueError(
                f"positions must be at least context ({self.context}), found {self.positions}"
            )
        return self
