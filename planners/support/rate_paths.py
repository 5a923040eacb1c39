"""Paths of the learning rate in planners: their bounds, values, and intervention sequences.

A path is ln of the factor on the rate now at each decision to come, an array [L] with L as
`decisions_left`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.sequences import NOTHING, Interventions
from trainenv.tools.error_text import describe_error
from trainenv.types import Intervention, UserError, as_path_model

Floats = NDArray[np.float64]
FACTORS = (0.2, 0.35, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 2.8, 4.0)
"""Levels of the shapes, as factors on the rate now."""
LENGTHS = (0.0, 0.25, 0.5, 1.0)
"""Lengths of their ramps, as shares of what is left; 0 is a jump."""
TURNS = (
    *product((0.35, 0.6), (0.05, 0.2), (1.0, 1.7, 2.8), (0.6,)),
    *product((1.4, 2.5), (0.25, 0.5), (0.7, 0.3), (1.0,)),
)
"""Shapes with a turn: to one factor until a share of what is left, then to another until a share.

A rate that falls first and rises later makes up for a warm-up that was too short.
"""
STARTS = tuple(product((0.05, 0.1, 0.2, 0.35, 0.6), (0.1, 0.25, 0.5), (0.5, 1.0, 1.7, 2.8)))
"""Shapes from the first step on: a jump to one factor, then a ramp to another until a share.

They are slow warm-ups to a rate that may be another than the scheduled one.
"""
_LEAST_CHANGE = 1e-4  # nats of ln rate below which a change is none


def rate_limits(builder: PlanBuilder) -> tuple[float, float]:
    """Return the bounds of paths: ln of the least and greatest factor on the rate now."""
    bounds = builder.problem.rate_bounds
    if bounds is None:
        return -math.inf, math.inf
    return min(math.log(bounds[0]), 0.0), max(math.log(bounds[1]), 0.0)


def shapes_within(
    builder: PlanBuilder, factors: tuple[float, ...], lengths: tuple[float, ...]
) -> Floats:
    """Return the shapes [K, L] from now to the end of the run that keep to the bounds."""
    low, high = rate_limits(builder)
    paths = shapes(builder.problem.decisions_left, factors, lengths)
    if not builder.problem.history.telemetry:
        paths = np.concatenate([paths, warm_ups(builder.problem.decisions_left)])
    within: Floats = paths[(paths.min(axis=1) >= low) & (paths.max(axis=1) <= high)]
    return within


@lru_cache(maxsize=256)
def shapes(decisions: int, factors: tuple[float, ...], lengths: tuple[float, ...]) -> Floats:
    """Return the different paths [K, L] over some decisions, those of `TURNS` included."""
    rows = []
    places = np.arange(1, decisions + 1)
    for factor in factors:
        for length in lengths:
            steps = max(1, round(length * decisions))
            rows.append(math.log(factor) * np.minimum(places / steps, 1.0))
    for first, share, second, end in TURNS:
        corners = np.array([0.0, share, max(end, share + 0.1)]) * decisions
        rows.append(np.interp(places, corners, [0.0, math.log(first), math.log(second)]))
    return np.unique(np.array(rows), axis=0)


@lru_cache(maxsize=16)
def warm_ups(decisions: int) -> Floats:
    """Return the paths [K, L] of `STARTS`."""
    rows = []
    for first, share, last in STARTS:
        corners = [0.0, share * decisions]
        rows.append(np.interp(np.arange(decisions), corners, [math.log(first), math.log(last)]))
    return np.array(rows)


def value_paths(builder: PlanBuilder, paths: Floats, caution: float) -> Floats:
    """Return the score of each path [K]: expected change + caution × disagreement, nats.

    NaN where a path is illegal or holds the rate, the budget refuses it, or the model fails. With a
    model that values no paths, the score is that of the forecast.

    Args:
        builder: Builder that is charged.
        paths: Paths to value [K, L].
        caution: Weight of the disagreement.
    """
    scores = np.full(len(paths), math.nan)
    model = as_path_model(builder.model)
    if model is None:
        forecast = builder.forecast([sequence_of(path) for path in paths])
        return np.array(forecast, dtype=np.float64)
    sequences = [sequence_of(path) for path in paths]
    places = np.array(
        [k for k, one in enumerate(sequences) if one != NOTHING and builder.admitted(one)],
        dtype=int,
    )
    count = int(min(len(places), builder.futures_left))
    if count < len(places):
        builder.exhausted = True
    if builder.over or not count:
        return scores
    builder.spend(paths=count)
    try:
        values = model.path_values(builder.problem.history, paths[places[:count]])
        found = np.asarray(values.change + caution * values.disagreement, dtype=np.float64)
        if found.shape != (count,):
            raise UserError(f"expected values of {count} paths, found an array {found.shape}")
    except Exception as error:
        builder.fail(f"the model failed: {describe_error(error)}")
        return scores
    scores[places[:count]] = np.where(np.isfinite(found), found, math.nan)
    lost = count - int(np.isfinite(found).sum())
    if lost:
        builder.fail(f"the model failed: {lost} of {count} values are not finite")
    return scores


def sequence_of(path: Floats) -> Interventions:
    """Return the interventions of a path, one a decision, up to the last that changes the rate."""
    changes = np.diff(path, prepend=0.0)
    changes[np.abs(changes) < _LEAST_CHANGE] = 0.0
    last = np.flatnonzero(changes)
    if not len(last):
        return NOTHING
    return tuple(
        Intervention(lr_scale=math.exp(change)) if change else NOTHING[0]
        for change in changes[: last[-1] + 1]
    )


def rank_paths(builder: PlanBuilder, paths: Floats, scores: Floats, kept: int) -> None:
    """Put the best paths on the plan; doing nothing has the score 0.

    Args:
        builder: Builder of the plan.
        paths: Paths [K, L].
        scores: Their scores [K]; those that are NaN are left out.
        kept: Largest number of paths.
    """
    builder.score(NOTHING, 0.0)
    order = np.argsort(scores, kind="stable")
    for place in order[: min(kept, int(np.isfinite(scores).sum()))]:
        sequence = sequence_of(paths[place])
        if sequence != NOTHING:
            builder.score(sequence, float(scores[place]))
