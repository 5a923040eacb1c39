"""History of a run, as forecasts need it: telemetry so far and learning rates to come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainenv.models.spec import spec_of
from trainenv.types import DECISIONS, RunHistory, Telemetry

if TYPE_CHECKING:
    from trainenv.types import Run


def history_of(
    run: Run, telemetry: Sequence[Telemetry], *, horizon: int, validation: float = math.nan
) -> RunHistory:
    """Return the history of a run that is at the step where its telemetry ends.

    Args:
        run: Run at its present step.
        telemetry: Telemetry of its steps so far, in order; the last 512, or 40 decisions, are
            enough.
        horizon: Steps that a forecast looks ahead, N; rounded to four decisions of equal length.
            The pretrained model knows horizons of 12 % of the budget.
        validation: Clean validation loss now, in nats per token; NaN if unknown.
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
    )
