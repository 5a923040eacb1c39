"""Keys of the section `model`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainenv.config.section import Config, Count


class ModelConfig(Config):
    """Architecture, size and initialisation of the model."""

    architecture: Literal["gpt2", "t5"] = Field(
        default="gpt2",
        description="`gpt2` predicts the next token. `t5` is an encoder-decoder that is trained by"
        " span corruption; it has as many blocks in the decoder as in the encoder.",
    )
    width: Count = Field(
        description="Width of the residual stream in features; a multiple of `model.heads`."
    )
    layers: Count = Field(description="Number of transformer blocks, at least 1.")
    heads: Count = Field(description="Number of attention heads; it must divide `model.width`.")
    context: Annotated[int, Field(ge=2)] = Field(
        description="Length of a training sequence in tokens, at least 2; for a T5 that of the"
        " encoder's inputs."
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
    blocks: Literal["standard", "reversible"] = Field(
        default="standard",
        description="`reversible` blocks of a GPT-2 compute their inputs again from their outputs"
        " (Gomez 2017): the memory of activations does not grow with `model.layers`, and steps are"
        " slower.",
    )
    activation_checkpointing: bool | Literal["sqrt"] = Field(
        default=False,
        description="Compute activations again in the backward pass instead of keeping them: less"
        " memory, slower steps, the same bits. `true` keeps the input of every block, `sqrt` that"
        " of every √`model.layers`-th one (Chen 2016).",
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
        if self.blocks == "reversible" and self.activation_checkpointing:
            raise ValueError(
                "reversible blocks keep no activations, found activation_checkpointing:"
                f" {str(self.activation_checkpointing).lower()} too; leave it out"
            )
        if self.architecture == "t5":
            self._check_t5()
        return self

    def _check_t5(self) -> None:
        """Refuse keys that only a GPT-2 has."""
        for key, usual in (("positions", None), ("init", "gpt2"), ("blocks", "standard")):
            if (found := getattr(self, key)) != usual:
                raise ValueError(f"{key} is for a GPT-2, found {found} for a T5; leave it out")
