"""Reports of one model's forecasts, and of two models' side by side, as JSON values."""

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

RISK_LIMIT = 0.2


def evaluate(
    examples: Examples,
    predictions: Predictions,
    *,
    noise: Floats | None = None,
    limit: float = RISK_LIMIT,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """What predictions are worth.

    Args:
        examples: what happened, of trunks that the model has not seen. Always the true examples,
            whatever the model was shown.
        predictions: of these branches, in their order.
        noise: [n, 3] seed noise of each branch's Δ by target; None for `seed_noise(examples)`. Of
            the whole data set it is better known: `seed_noise(whole)[rows]`.
        limit: of the risk, for alarms.
        resamples: of the trunks, for the intervals.
        seed: of the resampling.

    Returns:
        Nested; each leaf is {value, low, high: a 95 % bootstrap interval over trunks, units: rows
        or snapshots, trunks: of which there are units}. A number that cannot be computed, or that
        is infinite, is None. All Δ are of ln loss, in nats.

        - `rows`, `snapshots`, `trunks`: candidates, choices, and trunks evaluated.
        - A target (`horizon`, `annealed`, `final`):
          `all` and `mattering` (|Δ| above 2 × the seed noise): `mae` of the median, `crps`, both
          `_in_noise`; `share` of those.
          `ranking`: `spearman` within snapshots of at least 4 options; `best_in_top_6` where there
              are more, and `…_by_chance`.
          Options are the different candidates and doing nothing, whose median is 0. `intervals`,
          nominally 90 %: `coverage` and mean `width`, `marginal`, by `strata`, and `selected`: of
          the candidate with the lowest median of `annealed` at each snapshot.
        - `divergence`, of candidates and controls: `rate`, which is also what `auprc` would be without knowledge; `brier`,
          `brier_by_decision`; `caught` share of divergences, `lead_steps` of those caught,
          `false_alarms` among the others.
        - `regret` at a target, of a rule (`regret.RULES`): `mean` and `in_noise`; of the model's own rule `of_nothing`: its mean
          regret in parts of that of doing nothing.

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
    """Two models on the same branches and the same resamples of their trunks.

    Args:
        examples: what happened.
        a: predictions of the one.
        b: of the other.
        noise: see `evaluate`; and so the rest.
        limit: of the risk, for alarms.
        resamples: of the trunks.
        seed: of the resampling.

    Returns:
        As `evaluate`, with leaves {a, b, difference: a − b, low, high, ratio: a ÷ b, ratio_low,
        ratio_high, units, trunks}: the 95 % intervals are those of the paired difference and ratio.
        What is the same for every model differs by 0.

    Raises:
        UserError: as `evaluate`.
    """
    weights = _weights(examples, resamples, seed)
    units = seed_noise(examples) if noise is None else noise
    ones, others = (_measures(examples, predictions, units, limit) for predictions in (a, b))
    return _counts(examples) | _nested(
        {path: _difference(ones[path], others[path], weights) for path in ones}
    )


def _measures(
    examples: Examples, predictions: Predictions, noise: Floats | None, limit: float
) -> Measures:
    _check(examples, predictions)
    if not 0 < limit < 1:
        raise UserError(
            f"limit must be a probability above 0 and below 1, found {limit!r}; the default is {RISK_LIMIT}"
        )
    units = seed_noise(examples) if noise is None else np.asarray(noise, dtype=np.float64)
    if units.shape != (len(examples), len(TARGETS)):
        raise UserError(
            f"noise must have the shape {(len(examples), len(TARGETS))}, found {units.shape}; see seed_noise"
        )
    return measures(examples, predictions, units, limit)


def _check(examples: Examples, predictions: Predictions) -> None:
    for field in fields(predictions):
        column: NDArray[Any] = getattr(predictions, field.name)
        if len(column) != len(examples):
            raise UserError(
                f"predictions must be of the {len(examples)} branches of the examples, found {len(column)} of {field.name}; "
                "predict the examples that are evaluated"
            )
        if np.isnan(column).any():
            row = int(np.isnan(column).reshape(len(column), -1).any(axis=1).argmax())
            raise UserError(
                f"predictions must be numbers, found NaN in {field.name} of branch {row}; mend the model"
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
    return float(number) if math.isfinite(number) else None


def _nested(leaves: Mapping[Path, dict[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for path, leaf in leaves.items():
        place = whole
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = leaf
    return whole
