"""Keys of the sections `validation` and `checkpoints`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainenv.config.section import Config, Count, CountOrZero


class ValidationConfig(Config):
    """Fixed validation set, evaluated while the run trains, and the test at its end."""

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
    full_every: CountOrZero = Field(
        default=0,
        description="Steps between evaluations of the whole validation part; 0 for none. They are"
        " recorded and charged like the others, and the last step has one too.",
    )
    test_sequences: CountOrZero = Field(
        default=0,
        description="Number of sequences of the test part, which is evaluated once, after the last"
        " step, and not charged; 0 for no test. A number above what there is means all of them.",
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
