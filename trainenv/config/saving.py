"""Keys of the sections `validation` and `checkpoints`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainenv.config.section import Config, Count, CountOrZero


class ValidationConfig(Config):
    """Fixed validation set, evaluated while the run trains."""

    every: CountOrZero = Field(
        default=1000,
        description="Steps between evaluations. With 0 only the start and the end of the run are"
        " evaluated.",
    )
    sequences: Count = Field(
        default=64,
        description="Number of sequences of `model.context` tokens in the validation set, at least"
        " 1. More cost more and are less noisy.",
    )


class CheckpointConfig(Config):
    """Checkpoints saved while the run trains.

    A run that ends or is stopped saves its exact state, whatever these keys are.
    """

    every: Count = Field(
        default=1000,
        description="Steps between checkpoints, at least 1. They are written in the background.",
    )
    keep_last: Count = Field(
        default=8,
        description="Number of the newest checkpoints that are kept, at least 1.",
    )
    moments: Literal["8bit", "exact"] = Field(
        default="8bit",
        description="Precision of the optimizer's moments in a checkpoint. `8bit` rounds them and"
        " halves the file; `exact` lets a run resume bit for bit.",
    )
    max_bytes: Count | None = Field(
        default=None,
        description="Largest size of all checkpoints together in bytes: the oldest are deleted"
        " first, the newest never. By default there is no limit.",
    )
    on_error: Literal["raise", "warn"] = Field(
        default="raise",
        description="Effect of a save that fails: `raise` ends the run, `warn` reports it and"
        " training continues.",
    )
