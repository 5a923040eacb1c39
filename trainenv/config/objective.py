"""Keys of the section `objective`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from trainenv.config.section import Config, NonNegative
from trainenv.objectives import weightings
from trainenv.objectives.weightings import WeightingName
from trainenv.tools.paths import absolute
from trainenv.types import UserError


class ObjectiveConfig(Config):
    """Training loss: next-token prediction, or multi-token prediction with weighted tokens.

    Validation and probe losses are those of next-token prediction in either case.
    """

    kind: Literal["next_token", "mtp"] = Field(
        default="next_token",
        description="Loss: `next_token` is the mean cross-entropy of the next token; `mtp` predicts"
        " several tokens ahead (Gloeckle 2024). The other keys are for `mtp`.",
    )
    heads: Annotated[int, Field(ge=1, le=16)] = Field(
        default=4,
        description="Number of tokens that are predicted ahead, each by a head of its own, from 1"
        " to 16. Head 0 is the model itself.",
    )
    head: Literal["block", "linear"] = Field(
        default="block",
        description="Kind of the further heads: a transformer `block`, or a `linear` map of the"
        " final states.",
    )
    head_weights: tuple[NonNegative, ...] | None = Field(
        default=None,
        description="Weight of the loss of each head, head 0 first, each at least 0. By default 1"
        " each.",
    )
    weighting: WeightingName = Field(
        default="uniform",
        description="Weights of the tokens. `critic` weights by the change of the probability of"
        " success, `rho1` keeps tokens with a high loss over a reference model; `low_excess` is its"
        " mistaken opposite; `random` and `shuffled` are controls.",
    )
    options: Mapping[WeightingName, Mapping[str, float | str | bool | None]] = Field(
        default_factory=dict,
        description="Hyperparameters by weighting, for example `{rho1: {kept_share: 0.5}}`. What is"
        " left out keeps the weighting's default.",
    )
    reference: Path | None = Field(
        default=None,
        description="Reference model of `rho1`: a folder of transformers, or a `.safetensors` file"
        " with weights of the same GPT-2, as `trainenv checkpoint export` writes it.",
    )
    reference_ahead: bool = Field(
        default=False,
        description="Compare each head with that head of the reference, which must have as many."
        " By default the reference's next-token loss of the same token is taken.",
    )

    @field_validator("reference")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        return absolute(value)

    @model_validator(mode="after")
    def _fits(self) -> ObjectiveConfig:
        if self.head_weights is not None and len(self.head_weights) != self.heads:
            raise ValueError(
                f"head_weights must hold one weight for each of {self.heads} heads, found "
                f"{len(self.head_weights)}"
            )
        try:
            for name in self.options:
                weightings.make(name, self.options)
            made = weightings.make(self.weighting, self.options)
        except UserError as error:
            raise ValueError(str(error)) from None
        if self.kind == "mtp" and made.needs_reference and self.reference is None:
            raise ValueError(
                f"the weighting {self.weighting} needs a reference model, found none; set"
                " objective.reference"
            )
        return self
