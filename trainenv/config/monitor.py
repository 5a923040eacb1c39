"""Keys of the section `monitor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainenv.config.presets import find, merge, read_yaml
from trainenv.config.section import Config, Count, CountOrZero, NonNegative, Positive, Rate

_Axis = Literal["volatility", "entropy", "disagreement"]


class UncertaintyConfig(Config):
    """Uncertainty index: three axes, each a z-score against its own history.

    The defaults are in `configs/uncertainty.yaml`.
    """

    window: Annotated[int, Field(ge=8)] = Field(
        description="Steps of history that an axis is compared with, at least 8."
    )
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="Decay per step of the exponential averages, between 0 and 1."
    )
    min_history: Annotated[int, Field(ge=4)] = Field(
        description="Steps of history before an axis has a z-score, at least 4 and at most"
        " `window`."
    )
    weights: Mapping[_Axis, NonNegative] = Field(
        description="Weight of each axis in the index, at least 0 and not all 0."
    )
    threshold: Positive = Field(
        description="Index that counts as an exceedance, as a z-score above 0."
    )
    consecutive: Count = Field(
        description="Number of exceedances in a row that fire the index, at least 1."
    )
    single: Positive = Field(
        description="Index that fires at once, as a z-score; at least `threshold`."
    )
    lenient: Annotated[float, Field(ge=1)] = Field(
        description="Factor on both thresholds at the start of the run, at least 1. It falls to 1"
        " linearly."
    )
    lenient_steps: CountOrZero = Field(
        description="Steps until that factor is 1, or fewer by `lenient_share`."
    )
    lenient_share: Rate = Field(
        default=0.2,
        description="Largest share of the run until that factor is 1, from 0 to 1.",
    )
    refractory: CountOrZero = Field(
        description="Steps after the index has fired in which it does not fire again."
    )
    shift_drift: NonNegative = Field(
        default=0.5,
        description="Rise per step, in standard deviations, that is not counted as a shift (Page"
        " 1954): half of the smallest shift that matters.",
    )
    shift_limit: Positive = Field(
        default=8.0,
        description="Cumulative sum of larger rises that counts as an exceedance, in standard"
        " deviations.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> UncertaintyConfig:
        if self.single < self.threshold:
            raise ValueError(
                f"single ({self.single}) must be at least threshold ({self.threshold})"
            )
        axes = {"volatility", "entropy", "disagreement"}
        if set(self.weights) != axes or not sum(self.weights.values()) > 0:
            raise ValueError(
                "weights must name volatility, entropy and disagreement, not all 0,"
                f" found {dict(self.weights)}"
            )
        if self.min_history > self.window:
            raise ValueError(
                f"min_history ({self.min_history}) must be at most window ({self.window})"
            )
        return self


class MonitorConfig(Config):
    """Telemetry, probe and uncertainty index."""

    enabled: bool = Field(
        default=True,
        description="Compute the probe, the hypergradient and the uncertainty index. With `false`"
        " the steps are recorded, but nothing fires.",
    )
    block: Count = Field(
        default=16,
        description="Steps of telemetry that are read from the device together, at least 1. A"
        " callback acts at the end of a block.",
    )
    probe_every: CountOrZero = Field(
        default=8,
        description="Steps between looks of the probe into the model; 0 turns it off. The"
        " hypergradient is measured at every second look, and more often during the first three"
        " warm-ups.",
    )
    probe_sequences: Count = Field(
        default=2,
        description="Number of clean sequences of `model.context` tokens that the probe looks at,"
        " at least 1.",
    )
    uncertainty: UncertaintyConfig = Field(
        default_factory=lambda: UncertaintyConfig(**read_yaml(find("uncertainty"))),
        description="Settings of the uncertainty index.",
    )

    @field_validator("uncertainty", mode="before")
    @classmethod
    def _over_the_defaults(cls, value: Any) -> Any:
        """Merge the given values over those of `configs/uncertainty.yaml`."""
        if not isinstance(value, Mapping):
            return value
        return merge(read_yaml(find("uncertainty")), value)
