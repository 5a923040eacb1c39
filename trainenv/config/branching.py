"""Keys of the section `branching`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trainenv.config.presets import with_new_keys
from trainenv.config.section import (
    Config,
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    steps_or_share,
)
from trainenv.distributed.executors import address_of

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
# For the type checker they are what pydantic makes of them.
if TYPE_CHECKING:
    _StepsOrShare = int | float
    _StepsOrShareOrZero = int | float
    _HorizonOrShare = int | float
else:
    _StepsOrShare = steps_or_share(1)
    _StepsOrShareOrZero = steps_or_share(0)
    _HorizonOrShare = steps_or_share(4)


class BranchingConfig(Config):
    """Decisions of the branching agent, and the compute that they may waste.

    A number of steps is a whole number, or a share of the run's steps: a
    number between 0 and 1. The defaults are shares, so they suit runs of
    any length.
    """

    triggers: tuple[Trigger, ...] = Field(
        default=("start", "warmup", "harm", "fired", "regression", "checkpoint"),
        description="Reasons for a decision. `start`: before the first step, if the planner plans"
        " to the end of the run; `warmup`: the learning rate does not suit; `harm`: the probe loss"
        " has been above its level by `branching.harm` for 1 % of the run; `fired`: the"
        " uncertainty index fires; `regression`: validation or stability gets worse; `checkpoint`:"
        " `branching.every` steps have passed.",
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
    every: _StepsOrShare = Field(
        default=0.05,
        description="Steps between decisions of the trigger `checkpoint`, or a share of the run.",
    )
    rewind: _StepsOrShare = Field(
        default=0.033,
        description="Steps, or a share of the run, before an alarm to which the run goes back at"
        " least, if half of the harm"
        " is still there `branching.refractory_steps` steps after it.",
    )
    save_every: _StepsOrShare = Field(
        default=0.016,
        description="Steps between rewind points, or a share of the run. Once harm is detected, the"
        " run rolls back to one from before it.",
    )
    harm: Positive = Field(
        default=0.1,
        description="Rise of the probe loss over its usual level that counts as harm, in nats,"
        " above 0.",
    )
    horizon: _HorizonOrShare = Field(
        default=0.12,
        description="Steps that a forecast looks ahead, at least 4, or a share of the run. The"
        " pretrained world model knows horizons of 0.12.",
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
    executor: str = Field(
        default="local",
        description="Place of the `workers`, with equal bits: `local` for this machine, `ray` for"
        " the Ray cluster of RAY_ADDRESS or else a Ray on this machine, or `ray://HOST:PORT`.",
    )
    verify_steps: _StepsOrShare = Field(
        default=0.004,
        description="Optimizer steps that each candidate and the control are trained, or a share of"
        " the run.",
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
        " plan to the end of the run followed, in nats, at least 0. Such a plan must promise 1.6"
        " times as much, unless the last one was followed.",
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
    refractory_steps: _StepsOrShareOrZero = Field(
        default=0.027,
        description="Steps after a decision, or a share of the run, in which `fired` and"
        " `regression` do not trigger another.",
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

    @field_validator("executor")
    @classmethod
    def _known_executor(cls, executor: str) -> str:
        address_of(executor)
        return executor

    @model_validator(mode="before")
    @classmethod
    def _old_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return with_new_keys(values, section="branching")

    def settings(self, steps: int) -> BranchingSettings:
        """Return the settings for a run of a number of steps: shares become whole steps."""
        values = self.model_dump()
        for name, least in _LEAST.items():
            if isinstance(values[name], float):
                values[name] = max(least, round(values[name] * steps))
        return BranchingSettings(**values)


class BranchingSettings(BranchingConfig):
    """Settings of the branching loop on one run: `BranchingConfig` with whole numbers of steps."""

    every: Count
    rewind: Count
    save_every: Count
    horizon: Annotated[int, Field(ge=4)]
    verify_steps: Count
    refractory_steps: CountOrZero


# Fewest steps that a share of a short run is rounded up to: so many are needed to see anything.
_LEAST = {
    "every": 8,
    "rewind": 8,
    "save_every": 8,
    "horizon": 8,
    "verify_steps": 5,
    "refractory_steps": 8,
}
