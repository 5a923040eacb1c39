"""Keys of the sections `interventions` and `environment`."""

from __future__ import annotations

from pydantic import Field, model_validator

from trainenv.config.section import Config, Count, NonNegative, Positive
from trainenv.types import CLIP_NAMES, ClipName


class InterventionConfig(Config):
    """Action space: the values of each part of an intervention, and bounds on their product."""

    lr_scales: tuple[Positive, ...] = Field(
        default=(1.0, 0.8, 0.9, 1.1),
        description="Factors on the learning rate that one intervention can choose from, each above"
        " 0. The first must be 1.",
    )
    weight_decay_scales: tuple[Positive, ...] = Field(
        default=(1.0, 0.5, 2.0),
        description="Factors on the weight decay that one intervention can choose from, each above"
        " 0. The first must be 1.",
    )
    clips: tuple[ClipName, ...] = Field(
        default=CLIP_NAMES,
        description="Clip policies that one intervention can choose from, in the order of the"
        " action's values. `skip_step`, `adagc` and `gradient_stabilizer` may be added.",
    )
    lr_bounds: tuple[Positive, Positive] = Field(
        default=(0.01, 10.0),
        description="Least and largest product of all factors on the learning rate; they enclose"
        " 1.",
    )
    weight_decay_bounds: tuple[Positive, Positive] = Field(
        default=(0.125, 8.0),
        description="Least and largest product of all factors on the weight decay; they enclose 1.",
    )
    allow_momentum_reset: bool = Field(
        default=True,
        description="Allow an action to reset the optimizer's moments.",
    )
    allow_spam: bool = Field(
        default=False,
        description="Allow an action to put the clip policy `spam` in force, which resets the"
        " moments itself.",
    )
    allow_data_reorder: bool = Field(
        default=False,
        description="Allow an action to shuffle the data still to come in the epoch.",
    )
    allow_skip_batch: bool = Field(
        default=False,
        description="Allow an action to skip the batches still to come that the monitor has"
        " flagged.",
    )
    allow_emphasis: bool = Field(
        default=False,
        description="Add a seventh part to the action: less or more emphasis of the objective. An"
        " objective that selects tokens then keeps 0.1 less or more of them, another multi-token"
        " objective weighs its further heads ÷ 1.25 or × 1.25.",
    )

    @model_validator(mode="after")
    def _neutral_first(self) -> InterventionConfig:
        for name in ("lr_scales", "weight_decay_scales"):
            if getattr(self, name)[:1] != (1.0,):
                raise ValueError(
                    f"{name} must start with 1.0, so that the action of all zeros does nothing"
                )
        if len(set(self.clips)) < len(self.clips):
            raise ValueError(f"clips must hold each policy once, found {', '.join(self.clips)}")
        for name in ("lr_bounds", "weight_decay_bounds"):
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise ValueError(f"{name} must enclose 1.0, found ({low}, {high})")
        return self


class EnvironmentConfig(Config):
    """Gymnasium environment around the run.

    The reward of a decision is the fall of ln(validation loss), less two charges.
    """

    decision_steps: Count = Field(
        default=50, description="Optimizer steps from one decision to the next, at least 1."
    )
    instability_charge: NonNegative = Field(
        default=0.001,
        description="Charge for each time that the uncertainty index fires, in nats, at least 0.",
    )
    compute_charge: NonNegative = Field(
        default=0.1,
        description="Charge for spending the whole budget on branches, in nats, at least 0. A share"
        " of the budget costs that share of it.",
    )
    divergence_loss: Positive = Field(
        default=2.0,
        description="Validation loss at which the run counts as diverged, as a multiple of the loss"
        " of a uniform guess (ln of the vocabulary), above 0.",
    )
