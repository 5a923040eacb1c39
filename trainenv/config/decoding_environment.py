"""Keys of the environment in which an agent sets the thresholds of speculative decoding."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainenv.config.section import Config, Count, NonNegative, Positive

Share = Annotated[float, Field(ge=0, le=1)]


class DecodingRewardConfig(Config):
    """Weights of the terms of the reward, and the intervals of its shaping term."""

    speed: NonNegative = Field(
        default=1.0,
        description="Weight of the speed, which is the time a token of the target alone, divided by"
        " that with the draft; at least 0.",
    )
    acceptance: NonNegative = Field(
        default=0.5,
        description="Weight of the chance that a draft token is accepted, at least 0.",
    )
    shaping: NonNegative = Field(
        default=0.1,
        description="Weight of the shaping term, at least 0. It is 1 with both thresholds inside"
        " their intervals, and falls to -1 outside.",
    )
    distance: NonNegative = Field(
        default=0.0,
        description="Weight of the total-variation distance to the target, which is taken off; at"
        " least 0.",
    )
    fallback: tuple[Share, Share] = Field(
        default=(0.4, 0.7), description="Interval of the fallback threshold, a probability."
    )
    rollback: tuple[Share, Share] = Field(
        default=(0.3, 0.7), description="Interval of the rollback threshold, in shares of K."
    )

    @model_validator(mode="after")
    def _intervals(self) -> DecodingRewardConfig:
        for name in ("fallback", "rollback"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name} must rise, found ({low}, {high})")
        return self


class DecodingEnvConfig(Config):
    """Environment `trainenv/Decoding-v0`."""

    rule: Literal["exact", "lossy", "pipelined"] = Field(
        default="lossy",
        description="Rule of verification. Only `lossy` uses the rollback threshold.",
    )
    k: Annotated[int, Field(ge=2, le=16)] = Field(
        default=16, description="Greatest draft length K, from 2 to 16."
    )
    decisions: Count = Field(default=20, description="Decisions of an episode, at least 1.")
    fallback_step: Positive = Field(
        default=0.2,
        description="Greatest change of the fallback threshold in a decision, in shares of its"
        " range, above 0.",
    )
    rollback_step: Positive = Field(
        default=0.1,
        description="Greatest change of the rollback threshold in a decision, in shares of its"
        " range, above 0.",
    )
    context: bool = Field(
        default=False,
        description="Add to the observation what is known of the pair and the prompts.",
    )
    reward: DecodingRewardConfig = Field(
        default=DecodingRewardConfig(), description="Terms of the reward."
    )
