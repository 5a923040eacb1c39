"""Inputs of the value of a path: features of the state now, and of the path still to come.

Everything about the path is relative to the rate now, and times are shares of what is left, so that
budgets, sizes and numbers of decisions do not matter:

    rest[j]     ln factor on the schedule at decision j from now, less ln of the factor now
    rate[j]     ln of the learning rate there: ln schedule[j] + rest[j]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainenv.types import DECISIONS, RunHistory
from trainenv.worldmodel.features import LEAST_STEPS, STATE, Columns, Context, read, state

Floats = NDArray[np.float64]

SEGMENTS = 10  # equal parts of what is left, each with the mean of `rest`
PATH: tuple[str, ...] = (
    *(f"rest_{part}" for part in range(SEGMENTS)),
    "first",
    "last",
    "mean",
    "highest",
    "lowest",
    "area",
    "peak",
    "peak_over_past",
    "now_over_past",
    "end_rate",
    "factor_now",
    "now_over_usual",
    "peak_over_usual",
    "usual_known",
)
"""Features of a path, in order."""
HORIZON_SHARE = 0.12
"""Share of the budget that the features look back and ahead over, in four decisions."""
_LEAST = 1e-9  # learning rates below this share of the greatest count as this share


@dataclass(frozen=True, kw_only=True)
class PathState:
    """State of a run, from which paths are valued.

    Attributes:
        features: [F] features of the state, see `trainenv.worldmodel.features`.
        level: ln of the clean loss now.
        schedule: [L] scheduled learning rate during each decision to come.
        now: ln of the factor on the schedule now.
        peak: ln of the greatest learning rate so far.
        usual: ln of the learning rate that usually suits a model of this size; NaN if unknown.
    """

    features: Floats
    level: float
    schedule: Floats
    now: float
    peak: float
    usual: float = math.nan


def path_features(
    schedule: Floats, rest: Floats, now: Floats, peak: Floats, usual: Floats
) -> Floats:
    """Return features [n, P] of n paths over the same number of decisions, in the order of `PATH`.

    Args:
        schedule: [n, L] or [1, L] scheduled learning rate during each decision to come.
        rest: [n, L] ln factors relative to now.
        now: [n] ln of the factor on the schedule now.
        peak: [n] ln of the greatest learning rate so far.
        usual: [n] ln of the usual learning rate; NaN if unknown.
    """
    count = rest.shape[1]
    highest = np.maximum(schedule.max(axis=1, keepdims=True), 1e-30)
    log_schedule = np.log(np.maximum(schedule, _LEAST * highest))
    rate = log_schedule + rest  # less `now`
    sums = np.concatenate([np.zeros((len(rest), 1)), np.cumsum(rest, axis=1)], axis=1)
    borders = np.linspace(0, count, SEGMENTS + 1)
    whole = np.minimum(borders.astype(int), count - 1)
    at = sums[:, whole] + (borders - whole) * rest[:, whole]
    segments = np.diff(at, axis=1) * (SEGMENTS / count)
    area = np.log((schedule * np.exp(rest)).sum(1) / np.maximum(schedule.sum(1), 1e-30))
    rate_now = log_schedule[:, 0] + now
    peak_ahead = rate.max(axis=1) + now
    columns = [
        rest[:, 0],
        rest[:, -1],
        rest.mean(axis=1),
        rest.max(axis=1),
        rest.min(axis=1),
        area,
        peak_ahead - rate_now,
        peak_ahead - peak,
        rate_now - peak,
        np.exp(np.minimum(rate[:, -1] - log_schedule[:, 0], 3.0)),
        now + np.zeros(len(rest)),
        np.nan_to_num(rate_now - usual),
        np.nan_to_num(peak_ahead - usual),
        np.isfinite(usual).astype(np.float64),
    ]
    return np.concatenate([segments, np.stack(np.broadcast_arrays(*columns), axis=1)], axis=1)


def read_state(history: RunHistory) -> tuple[Floats, float, Columns, Context]:
    """Return the features [F] of the state at the end of a history, and what they are made of.

    The loss now is that of the clean probe, since a validation loss is not known at every decision.
    The unit of time is a share of the budget, whatever the horizon of the history is. In a long run
    the sparse telemetry is read, so that features look back over the same share of the run.

    Returns:
        The features, ln of the clean loss now, the columns of the telemetry, and the context.

    Raises:
        UserError: The history is too short, or its last step is not finite.
    """
    budget = history.telemetry[-1].step + len(history.lrs_ahead)
    known = replace(history, validation=math.nan, decision_steps=decision_steps(budget))
    stride = 1
    if len(history.sparse) >= LEAST_STEPS:
        known = replace(known, telemetry=history.sparse)
        stride = history.stride
    columns, context = read(known, stride=stride)
    features = state(columns, context)
    level = float(features[STATE.index("level")]) + math.log(context.uniform_loss)
    return features, level, columns, context


def state_inputs(features: Floats) -> Floats:
    """Return the inputs [n, 2F] of states [n, F]: features, 0 if not measured, and flags."""
    measured = np.isfinite(features)
    return np.concatenate([np.where(measured, features, 0.0), measured], axis=1)


def start_state(budget: int) -> Floats:
    """Return the features [F] of a run before its first step: NaN for all that is not known."""
    features = np.full(len(STATE), np.nan)
    steps = decision_steps(budget)
    features[STATE.index("progress")] = 0.0
    features[STATE.index("decision")] = math.log(steps)
    features[STATE.index("left")] = math.log(budget / steps)
    return features


def decision_steps(budget: int) -> int:
    """Return the steps of a decision, the unit of time of the features, for a budget in steps."""
    return max(1, round(HORIZON_SHARE * budget / DECISIONS))


STATE_INPUTS = 2 * len(STATE)
