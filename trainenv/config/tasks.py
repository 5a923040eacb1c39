"""Keys of the section `tasks`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainenv.config.section import Config, Count

SampleSet = Literal["right", "balanced", "curriculum"]
TaskKind = Literal[
    "sums",
    "products",
    "strings",
    "traces",
    "loops",
    "branches",
    "number_words",
    "string_words",
    "examples",
    "loop_words",
]
Difficulty = Annotated[int, Field(ge=1, le=4)]


class TaskConfig(Config):
    """Samples of tasks with verifiable solutions, for the corpora `tasks` and `code-contests`.

    The loss counts the tokens of solutions only. Samples that are longer than `model.context` + 1
    tokens are left out.
    """

    samples: SampleSet = Field(
        default="right",
        description="Samples to train on. `right` has right solutions only, `balanced` half right"
        " and half wrong ones in each batch, `curriculum` too, with easier samples earlier in the"
        " first epoch.",
    )
    scale: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.01,
        description="Size of the sample set as a share of the full one, above 0 and at most 1. In"
        " full, `right` and `curriculum` have 150 000 samples and `balanced` has 50 000.",
    )
    kinds: tuple[TaskKind, ...] = Field(
        default=(),
        description="Kinds of the tasks that `tasks` generates. By default all of them.",
    )
    difficulties: tuple[Difficulty, Difficulty] = Field(
        default=(1, 3),
        description="Least and greatest difficulty of the tasks that `tasks` generates, from 1 to"
        " 4.",
    )
    held_out: Count = Field(
        default=256,
        description="Number of tasks in each held-out part (validation, probe and test), at least"
        " 1. Fewer remain where they repeat each other.",
    )
    language: str = Field(
        default="python3",
        description="Programming language of the solutions that `code-contests` reads.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> TaskConfig:
        if self.difficulties[0] > self.difficulties[1]:
            raise ValueError(
                f"difficulties must have the least one first, found {self.difficulties}"
            )
        return self
