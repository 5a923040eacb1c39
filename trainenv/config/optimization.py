"""Keys of the sections `optimizer`, `schedule` and `clip`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainenv.config.section import Config, CountOrZero, NonNegative, Positive, Rate
from trainenv.types import ClipName

_Optimizer = Literal["adamw", "adam", "sgd", "adafactor", "muon", "adamw_8bit", "schedule_free"]
_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """Optimizer, AdamW (Loshchilov & Hutter 2019) by default."""

    name: _Optimizer = Field(
        default="adamw",
        description="Optimizer; `muon` is Muon for the matrices inside the model and AdamW for"
        " the rest. `adamw_8bit` (bitsandbytes) and `schedule_free` need the extra `optimizers`.",
    )
    lr: Positive = Field(
        description="Base learning rate, above 0. The rate of a step is base × schedule ×"
        " interventions."
    )
    betas: tuple[_Beta, _Beta] = Field(
        default=(0.9, 0.95),
        description="Decay rates of the first and second moment, each from 0 to below 1.",
    )
    eps: Positive = Field(
        default=1e-8, description="Term added to the denominator of the update, above 0."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.95, description="Momentum of `sgd` and `muon`, from 0 to below 1."
    )
    weight_decay: NonNegative = Field(
        default=0.1,
        description="Weight decay, at least 0; decoupled but for `adam` and `sgd`. Biases, norms"
        " and position embeddings have none.",
    )


class ScheduleConfig(Config):
    """Learning rate over the budget, as a factor on the base rate."""

    kind: Literal["cosine", "wsd", "constant"] = Field(
        default="cosine",
        description="Shape after the warm-up: `cosine`, `wsd` (stable, then a decay) or"
        " `constant`.",
    )
    warmup: CountOrZero = Field(
        default=100, description="Steps of linear warm-up at the start; 0 for none."
    )
    final: Rate = Field(
        default=0.1,
        description="Factor on the base rate at the end of the budget, from 0 to 1. `constant`"
        " ignores it.",
    )
    decay_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2,
        description="Last share of the steps after the warm-up in which `wsd` decays, above 0 and"
        " at most 1.",
    )


class ClipConfig(Config):
    """Gradient clipping at the start of the run; interventions may change the policy."""

    policy: Literal[ClipName, "norm"] = Field(
        default="zclip",
        description="Clip policy at the start. `norm` clips at the norm `clip.max_norm`, `none`"
        " does not clip.",
    )
    max_norm: Positive | None = Field(
        default=None,
        description="Largest norm of the gradient (L2, over all parameters) that passes, above 0;"
        " needed by the policy `norm`, and not allowed for the others.",
    )
    options: Mapping[ClipName, Mapping[str, float | str | bool | None]] = Field(
        default_factory=dict,
        description="Hyperparameters by policy, for example `{zclip: {z_threshold: 3.0}}`. What is"
        " left out keeps the policy's default.",
    )

    @model_validator(mode="after")
    def _norm_belongs_to_its_policy(self) -> ClipConfig:
        if self.policy == "norm" and self.max_norm is None:
            raise ValueError(
                "policy norm needs the norm to clip at, found no max_norm; set clip.max_norm: 1.0"
            )
        if self.policy != "norm" and self.max_norm is not None:
            raise ValueError(
                f"max_norm is for the policy norm, found policy {self.policy}; set clip.policy:"
                " norm, or leave max_norm out"
            )
        return self

    @property
    def in_force(self) -> ClipName:
        """Name of the policy that is in force at the start of the run.

        Clipping at a fixed norm is the policy `none` of interventions and telemetry, with the
        option `max_norm`.
        """
        if self.policy == "norm":
            return "none"
        return self.policy

    def options_of(self, name: str) -> Mapping[str, Any]:
        """Return the hyperparameters of a policy that differ from its defaults."""
        given = next((options for policy, options in self.options.items() if policy == name), {})
        if name == "none" and self.max_norm is not None:
            return {**given, "max_norm": self.max_norm}
        return given
