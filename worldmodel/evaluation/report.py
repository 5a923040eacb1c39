"""Reports on the forecasts of one model, and comparisons of two models, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainenv.types import UserError
from trainenv.worldmodel.evaluation.choices import choices
from trainenv.worldmodel.evaluation.measures import Measures, Path, measures
from trainenv.worldmodel.evaluation.noise import seed_noise
from trainenv.worldmodel.evaluation.statistics import Floats, Statistic, bounds, resampled, value
from trainenv.worldmodel.examples import TARGETS, Examples, Predictions

RISK_LIMIT = 0.2  # probability of divergence at which an alarm is raised


def evaluate(
    examples: Examples,
    predictions: Predictions,
    *,
    noise: Floats | None = None,
    limit: float = RISK_LIMIT,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate predictions: errors, ranking, intervals, divergence and regret.

    Args:
        examples: Outcomes of trunks that the model has not seen: the true examples, even if the
            model was given altered ones.
        predictions: Predictions for these branches, in their order.
        noise: [n, 3] seed noise of each branch's Δ by target; None for `seed_noise(examples)`. The
            whole data set gives a better estimate: `seed_noise(whole)[rows]`.
        limit: Probability of divergence at which an alarm is raised.
        resamples: Number of bootstrap samples of the trunks.
        seed: Random seed of the bootstrap.

    Returns:
        Nested dicts. Each leaf is {value, low, high, units, trunks}: the value, its 95 % bootstrap
        interval over trunks, and the numbers of rows (or snapshots) and of trunks that it is
        computed from. A number that cannot be computed or is infinite is None. All Δ are
        differences of ln loss, in nats.

        - `rows`, `snapshots`, `trunks`: numbers of candidates, choices and trunks.
        - Each target (`horizon`, `annealed`, `final`):
            - `all` and `mattering` (|Δ| above 2 × the seed noise): `mae` of the median and `crps`,
              both also `_in_noise`; `share` of mattering candidates.
            - `ranking` of the options at a snapshot, which are the distinct candidates and doing
              nothing (median 0): `spearman` for at least 4 options; `best_in_top_6` for more than
              6, and `best_in_top_6_by_chance`.
            - `intervals`, nominally 90 %: `coverage` and mean `width`; `marginal`, by `strata`, and
              `selected`, for the candidate with the lowest median of `annealed` at each snapshot.
        - `divergence` of candidates and controls: `rate` of divergence, which is also the `auprc`
          of a constant forecast; `brier` and `brier_by_decision`; `caught` share of divergences,
          `lead_steps` of the caught ones, share of `false_alarms` among the other branches.
        - `regret` at each target of each rule (`regret.RULES`): `mean` and `in_noise`; for the
          model's own rule `of_nothing`, its mean regret relative to that of doing nothing.

    Raises:
        UserError: predictions or noise do not fit the examples, a prediction is NaN, or there is no
            branch.
    """
    weights = _weights(examples, resamples, seed)
    found = _measures(examples, predictions, noise, limit)
    return _counts(examples) | _nested(
        {path: _leaf(statistic, weights) for path, statistic in found.items()}
    )


def compare(
    examples: Examples,
    a: Predictions,
    b: Predictions,
    *,
    noise: Floats | None = None,
    limit: float = RISK_LIMIT,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two models on the same branches and the same bootstrap samples of their trunks.

    Args:
        examples: Outcomes of trunks that neither model has seen.
        a: Predictions of the first model.
        b: Predictions of the second model.
        noise: [n, 3] seed noise of each branch's Δ by target; None for `seed_noise(examples)`.
        limit: Probability of divergence at which an alarm is raised.
        resamples: Number of bootstrap samples of the trunks.
        seed: Random seed of the bootstrap.

    Returns:
        The report of `evaluate` with leaves {a, b, difference, low, high, ratio, ratio_low,
        ratio_high, units, trunks}: the difference is a − b, the ratio a ÷ b, and the 95 % intervals
        are those of the paired difference and ratio. A statistic that does not depend on the model
        has the difference 0.

    Raises:
        UserError: predictions or noise do not fit the examples, a prediction is NaN, or there is no
            branch.
    """
    weights = _weights(examples, resamples, seed)
    if noise is None:
        noise = seed_noise(examples)
    first = _measures(examples, a, noise, limit)
    second = _measures(examples, b, noise, limit)
    return _counts(examples) | _nested(
        {path: _difference(first[path], second[path], weights) for path in first}
    )


def _measures(
    examples: Examples, predictions: Predictions, noise: Floats | None, limit: float
) -> Measures:
    _check(examples, predictions)
    if not 0 < limit < 1:
        raise UserError(
            f"limit must be a probability above 0 and below 1, found {limit!r}; "
            f"the default is {RISK_LIMIT}"
        )
    if noise is None:
        noise = seed_noise(examples)
    noise = np.asarray(noise, dtype=np.float64)
    if noise.shape != (len(examples), len(TARGETS)):
        raise UserError(
            f"noise must have the shape {(len(examples), len(TARGETS))}, found {noise.shape}; "
            "compute it with seed_noise"
        )
    return measures(examples, predictions, noise, limit)


def _check(examples: Examples, predictions: Predictions) -> None:
    for field in fields(predictions):
        column: NDArray[Any] = getattr(predictions, field.name)
        if len(column) != len(examples):
            raise UserError(
                f"predictions must be of the {len(examples)} branches of the examples, "
                f"found {len(column)} of {field.name}; predict the examples that are evaluated"
            )
        if np.isnan(column).any():
            row = int(np.isnan(column).reshape(len(column), -1).any(axis=1).argmax())
            raise UserError(
                f"predictions must be numbers, found NaN in {field.name} of branch {row}; "
                "correct the model"
            )


def _weights(examples: Examples, resamples: int, seed: int) -> Floats:
    present = np.bincount(examples.trunk, minlength=len(examples.trunks)) > 0
    return resampled(present, resamples, seed)


def _leaf(statistic: Statistic, weights: Floats) -> dict[str, Any]:
    low, high = bounds(statistic.of(weights))
    return {
        "value": _plain(value(statistic)),
        "low": _plain(low),
        "high": _plain(high),
        **_size(statistic),
    }


def _difference(one: Statistic, other: Statistic, weights: Floats) -> dict[str, Any]:
    a = value(one)
    b = value(other)
    many = one.of(weights)
    others = other.of(weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = bounds(many - others)
        ratio = np.float64(a) / np.float64(b)
        ratio_low, ratio_high = bounds(many / others)
    numbers = {"a": a, "b": b, "difference": a - b, "low": low, "high": high}
    numbers |= {"ratio": float(ratio), "ratio_low": ratio_low, "ratio_high": ratio_high}
    return {**{name: _plain(number) for name, number in numbers.items()}, **_size(one)}


def _size(statistic: Statistic) -> dict[str, int]:
    return {"units": statistic.units, "trunks": int(statistic.trunks.sum())}


def _counts(examples: Examples) -> dict[str, Any]:
    return {
        "rows": int(examples.candidate.sum()),
        "snapshots": len(choices(examples)),
        "trunks": len(np.unique(examples.trunk)),
    }


def _plain(number: float) -> float | None:
    if not math.isfinite(number):
        return None
    return float(number)


def _nested(leaves: Mapping[Path, dict[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for path, leaf in leaves.items():
        place = whole
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = leaf
    return whole
