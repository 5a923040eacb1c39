"""History of a run, as forecasts need it: telemetry so far and learning rates to come.

What is learned from short runs must hold in long ones, so features of a state look back over shares
of the budget. A long run therefore also keeps the telemetry of every n-th step, where n is
`stride_of(budget)`: its 512 entries reach back as far as those of a run of 1000 steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainenv.models.spec import spec_of
from trainenv.types import DECISIONS, RunHistory, Telemetry

if TYPE_CHECKING:
    from trainenv.types import Run


KEPT = 512
"""Steps of telemetry that a forecast looks back over, and entries of sparse telemetry."""
_STRIDE_1 = 1000  # steps of a budget for which each step is an entry


def stride_of(budget: int) -> int:
    """Return the steps from one entry of the sparse telemetry of a run to the next."""
    return max(1, round(budget / _STRIDE_1))


def history_of(
    run: Run,
    telemetry: Sequence[Telemetry],
    *,
    horizon: int,
    validation: float = math.nan,
    sparse: Sequence[Telemetry] = (),
    stride: int = 1,
) -> RunHistory:
    """Return the history of a run that is at the step where its telemetry ends.

    Args:
        run: Run at its present step.
        telemetry: Telemetry of its steps so far, in order; the last 512, or 40 decisions, are
            enough.
        horizon: Steps that a forecast looks ahead, N; rounded to four decisions of equal length.
            The pretrained model knows horizons of 12 % of the budget.
        validation: Clean validation loss now, in nats per token; NaN if unknown.
        sparse: Telemetry of every `stride`-th step so far; empty if `stride` is 1.
        stride: Steps from one entry of `sparse` to the next, as `stride_of` gives them.
    """
    return RunHistory(
        telemetry=telemetry,
        lrs_ahead=run.lrs_ahead(),
        base_lr=run.base_lr,
        uniform_loss=run.uniform_loss,
        decision_steps=max(1, round(horizon / DECISIONS)),
        validation=validation,
        flagged_ahead=len(run.flagged_ahead),
        usual_lr=spec_of(run.model).usual_lr(run.model),
        sparse=sparse,
        stride=stride,
    )
