"""What is known of a run, for those who forecast it: telemetry so far and the learning rates to come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainenv.types import DECISIONS, RunHistory, Telemetry

if TYPE_CHECKING:
    from trainenv.types import Run


def history_of(
    run: Run, telemetry: Sequence[Telemetry], *, horizon: int, validation: float = math.nan
) -> RunHistory:
    """The history of a run that is where its telemetry ends.

    Args:
        run: as it is now.
        telemetry: of its steps so far that were kept, in order; the last 512, or 40 decisions, will
            do.
        horizon: steps that a forecast is to look ahead, N; rounded to four decisions of equal
            length. The pretrained model knows horizons of 12 % of the budget.
        validation: clean validation loss now, nats per token, where it is known.
    """
    return RunHistory(
        telemetry=telemetry,
        lrs_ahead=run.lrs_ahead(),
        base_lr=run.base_lr,
        uniform_loss=run.uniform_loss,
        decision_steps=max(1, round(horizon / DECISIONS)),
        validation=validation,
        flagged_ahead=len(run.flagged_ahead),
    )
