"""Keys of the section `branching`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainenv.config.presets import with_new_keys
from trainenv.config.section import Config, Count, CountOrZero, NonNegative, Positive

Trigger = Literal["start", "warmup", "harm", "fired", "regression", "checkpoint"]
ActionPart = Literal[
    "lr_scale",
    "weight_decay_scale",
    "clip",
    "momentum_reset",
    "data_reorder",
    "skip_batch",
    "emphasis",
]


class BranchingConfig(Config):
    """Decisions of the branching agent, and the compute that they may waste.

    The default step counts are for a run of 16 000 steps. The presets tiny
    and demo scale them to their length; scale them to yours.
    """

    triggers: tuple[Trigger, ...] = Field(
        default=("start", "warmup", "harm", "fired", "regression", "checkpoint"),
        description="Reasons for a decision. `start`: before the first step, if the planner plans"
        " to the end of the run; `warmup`: the learning rate does not suit; `harm`: the probe loss"
        " has risen by `branching.harm`; `fired`: the uncertainty index fires; `regression`:"
        " validation or stability gets worse; `checkpoint`: `branching.every` steps have passed.",
    )
    parts: tuple[ActionPart, ...] = Field(
        default=("lr_scale", "clip"),
        description="Parts of an intervention that candidates may change. The default leaves out"
        " those that look good for a few steps and cost loss at the end, such as momentum resets.",
    )
    default_clip: bool = Field(
        default=True,
        description="Put ZClip in force at the first step if the run does not clip.",
    )
    every: Count = Field(
        default=1000,
        description="Steps between decisions of the trigger `checkpoint`, at least 1.",
    )
    rewind: Count = Field(
        default=1000,
        description="Steps before an alarm to which the run goes back at least, if half of the harm"
        " is still there `branching.refractory_steps` steps after it.",
    )
    save_every: Count = Field(
        default=250,
        description="Steps between rewind points, at least 1. Once harm is detected, the run rolls"
        " back to one from before it.",
    )
    harm: Positive = Field(
        default=0.1,
        description="Rise of the probe loss over its usual level that counts as harm, in nats,"
        " above 0.",
    )
    horizon: Annotated[int, Field(ge=4)] = Field(
        default=2000,
        description="Steps that a forecast looks ahead, at least 4. The pretrained world model"
        " knows horizons of 12 % of the budget.",
    )
    untried_change: NonNegative = Field(
        default=0.22,
        description="Largest change of ln learning rate that a decision at a checkpoint puts in"
        " force without a trial, where the planner plans to the end of the run; 0 tries every"
        " change. A few real steps cannot show a gain that comes late.",
    )
    top_k: Count = Field(
        default=6,
        description="Largest number of candidates that are trained in a verification, at least 1.",
    )
    workers: CountOrZero = Field(
        default=0,
        description="Processes that train candidates, one core each with `threads: 1`; 0 trains"
        " them in turn, with equal bits. Models up to width 48 need none, because their candidates"
        " are folded into one.",
    )
    verify_steps: Count = Field(
        default=50,
        description="Optimizer steps that each candidate and the control are trained, at least 1.",
    )
    rule: Literal["agreement", "annealed", "better", "risk"] = Field(
        default="agreement",
        description="Accept rule for verified candidates. `agreement` asks for a result inside the"
        " forecast interval, `annealed` for a lower loss after a cool-down, `better` for a lower"
        " loss at once, `risk` for a low forecast risk and some gain.",
    )
    min_gain: NonNegative = Field(
        default=0.006,
        description="Least forecast gain over doing nothing for which a candidate is verified, or a"
        " plan to the end of the run followed, in nats, at least 0.",
    )
    cut_gain: NonNegative = Field(
        default=0.005,
        description="Least measured gain that the rule `agreement` asks of a lower learning rate,"
        " in nats. A lower rate is nearly always a little better at first.",
    )
    max_lr_factor: Annotated[float, Field(ge=1)] = Field(
        default=4.0,
        description="Highest learning rate of a candidate, as a factor on the rate that the start"
        " of the run has found to suit; at least 1.",
    )
    max_waste: Annotated[float, Field(ge=0, le=0.9)] = Field(
        default=0.1,
        description="Largest share of the budget that is wasted on rejected branches, their"
        " evaluation and rewound steps, from 0 to 0.9.",
    )
    refractory_steps: CountOrZero = Field(
        default=500,
        description="Steps after a decision in which `fired` and `regression` do not trigger"
        " another.",
    )
    patience: Count = Field(
        default=5,
        description="Decisions in a row without an accepted candidate after which"
        " `branching.every` counts double. After twice as many, no more decisions are taken.",
    )
    rewind_points: Count = Field(
        default=8,
        description="Number of rewind points kept in memory, at least 1.",
    )
    replay_alarms: bool = Field(
        default=False,
        description="Train the steps before an alarm again when the run goes back: if they do not"
        " repeat to the bit, hardware is suspected, else the data or the state. It costs as many"
        " steps as are rewound, out of `branching.max_waste`.",
    )
    replayable: bool = Field(
        default=True,
        description="Save the state at the start of each decision, so that `trainenv replay` can"
        " repeat it. `false` saves disk space.",
    )

    @model_validator(mode="before")
    @classmethod
    def _old_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return with_new_keys(values, section="branching")
