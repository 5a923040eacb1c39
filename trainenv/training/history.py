"""History of a run, as forecasts need it: telemetry so far and learning rates to come.

What is learned from short runs must hold in long ones, so features of a state look back over shares
of the budget. A long run therefore also keeps one entry for every n steps, where n is
`stride_of(budget)`: its 512 entries reach back as far as those of a run of 1000 steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainenv.models.spec import spec_of
from trainenv.types import DECISIONS, RunHistory, Telemetry

if TYPE_CHECKING:
    from trainenv.types import Run


KEPT = 512
"""Steps of telemetry that a forecast looks back over, and entries of sparse telemetry."""
_SELDOM = (
    "hypergradient_cosine",
    "update_ratio",
    "probe_loss",
    "attention_entropy",
    "activation_entropy",
    "embedding_rms",
    "shortcut_ratio",
)
"""Measurements that are not made at every step."""
_STRIDE_1 = 1000  # steps of a budget for which each step is an entry


def stride_of(budget: int) -> int:
    """Return the steps from one entry of the sparse telemetry of a run to the next."""
    return max(1, round(budget / _STRIDE_1))


def sparse_of(telemetry: Sequence[Telemetry], stride: int, *, after: int = 0) -> list[Telemetry]:
    """Return an entry for each `stride` steps: the last of them, completed by the others.

    What was not measured at the last step is taken from the newest at which it was, and the index
    from a step at which it fired, if there is one.

    Args:
        telemetry: Telemetry of consecutive steps.
        stride: Number of steps of an entry.
        after: Step up to which entries are left out.
    """
    if not telemetry:
        return []
    first = telemetry[0].step
    last = telemetry[-1].step
    entries = []
    for end in range(stride * (max(after, first - 1) // stride + 1), last + 1, stride):
        steps = telemetry[max(end - stride - first + 1, 0) : end - first + 1]
        entries.append(_merged(steps))
    return entries


def _merged(steps: Sequence[Telemetry]) -> Telemetry:
    """Return the last of some steps, with what was not measured at it from the others."""
    last = steps[-1]
    changes: dict[str, Any] = {}
    for name in _SELDOM:
        known = [value for one in steps if math.isfinite(value := getattr(one, name))]
        if known:
            changes[name] = known[-1]
    fired = [one.reading for one in steps if one.reading.fired]
    if fired:
        changes["reading"] = fired[-1]
    return replace(last, **changes)


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
        sparse: Entries of `sparse_of`; empty if `stride` is 1.
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
