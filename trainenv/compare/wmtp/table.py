"""Comparison table of weightings: means over seeds, and paired differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from trainenv.compare.bootstrap import INTERVAL, Figure
from trainenv.compare.wmtp.methods import CONTROLS
from trainenv.compare.wmtp.td_errors import added
from trainenv.tools.json_lines import number_or_nan, plain

Row = Mapping[str, Any]
BASE = "uniform"
METRICS: Mapping[str, tuple[str, int]] = {
    # name: description, 1 if more is better, −1 if less is better, 0 if neither
    "exact_match": ("exact match", 1),
    "validation_loss": ("validation loss of the next token, nats", -1),
    "flops": ("FLOPs of training", 0),
    "steps": ("optimizer steps", 0),
    "training_seconds": ("time of training, seconds", -1),
    "memory": ("most memory in a step, bytes", -1),
    "grad_norm": ("mean gradient norm", 0),
    "grad_norm_deviation": ("deviation of the gradient norm over steps", -1),
    "loss_variance": ("variance of ln loss about its trend, last quarter", -1),
    "weight_entropy": ("entropy of the weights ÷ that of equal ones", 0),
    "effective_sample_size": ("effective sample size ÷ number of labels", 0),
    "kept_share": ("share of the labels with a weight above 0", 0),
    "clamp_rate": ("share of the weights at a bound of the clamp", 0),
    "value_explained_variance": ("explained variance of the value", 1),
    "value_drift": ("drift of the value against the earlier one", 0),
    "advantage_mean": ("mean advantage (TD error)", 0),
    "advantage_deviation": ("deviation of the advantage", 0),
    "acceptance": ("share of drafted tokens that stayed", 1),
    "tokens_per_call": ("tokens a call of the target with drafts", 1),
    "speed_up": ("time without drafts ÷ time with drafts", 1),
}
"""Metric → description and direction; pass@k, losses and errors by head are added as measured."""


def table(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, Any]:
    """Return the comparison as JSON values.

    Args:
        rows: Rows of finished cells.
        methods: Names of the methods, in order.

    Returns:
        - `metrics`: name → `what`, `better` (1, −1 or 0), `methods` (name → `value`, `low`, `high`,
          `pairs`) and `against_uniform` (the paired difference over the same seeds, likewise)
        - `seeds_variance`: method → variance of ln validation loss over seeds
        - `errors`: method → `losses` and `errors` by head and class of difficulty, means over seeds
        - `td_errors`: method with a value head → histograms of the TD error on right and wrong
          solutions, all seeds together
        - `verdicts`: one for each pair of a method and what it must be ahead of, for exact match
          and validation loss: `method`, `against`, `metric`, `difference`, `clear` (1 ahead, −1
          behind, 0 no clear difference)
        - `failed`: method, seed and error of failed cells
    """
    there = [row for row in rows if row.get("ended") == "budget spent"]
    by_method = {
        method: {int(row["seed"]): _flat(row) for row in there if row["method"] == method}
        for method in methods
    }
    found: dict[str, Any] = {"metrics": {}}
    for name, (what, better) in _metrics(by_method).items():
        values = {method: _figure(cells, name) for method, cells in by_method.items()}
        if all(math.isnan(one["value"]) for one in values.values()):
            continue
        found["metrics"][name] = {
            "what": what,
            "better": better,
            "methods": values,
            "against_uniform": {
                method: _difference(by_method, method, BASE, name)
                for method in methods
                if method != BASE and BASE in by_method
            },
        }
    found["seeds_variance"] = {
        method: _variance(cells) for method, cells in by_method.items() if len(cells) > 1
    }
    found["errors"] = {method: _errors(there, method) for method in methods}
    found["td_errors"] = {
        method: added(tables)
        for method in methods
        if (tables := [row["td_errors"] for row in there if _has_values(row, method)])
    }
    found["verdicts"] = [
        verdict
        for method, others in CONTROLS.items()
        for against in others
        if by_method.get(method) and by_method.get(against)
        for verdict in _verdicts(by_method, method, against)
    ]
    found["failed"] = [
        {key: row.get(key) for key in ("method", "seed", "ended", "error")}
        for row in rows
        if row.get("ended") != "budget spent"
    ]
    result = plain(found)
    assert isinstance(result, dict)
    return result


def figure(values: Sequence[float]) -> Figure:
    """Return the mean over seeds with the 95 % interval of Student's t.

    A bootstrap over two to four seeds gives intervals that are far too narrow.

    Args:
        values: One number a seed; those that are not finite are left out.
    """
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return Figure()
    mean = float(known.mean())
    if len(known) == 1:
        return Figure(value=mean, pairs=1, scenarios=1)
    error = float(known.std(ddof=1)) / math.sqrt(len(known))
    half = float(stdtrit(len(known) - 1, INTERVAL[1])) * error
    return Figure(value=mean, low=mean - half, high=mean + half, pairs=len(known), scenarios=1)


def _has_values(row: Row, method: str) -> bool:
    return bool(row["method"] == method and row.get("td_errors"))


def _flat(row: Row) -> dict[str, float]:
    """Return the numbers of a row by metric."""
    whole = [name for name in METRICS if not isinstance(row.get(name), Mapping)]
    numbers = {name: number_or_nan(row.get(name)) for name in whole}
    numbers["exact_match"] = number_or_nan((row.get("exact_match") or {}).get("value"))
    for k, share in (row.get("pass_at") or {}).items():
        numbers[f"pass@{k}"] = number_or_nan(share["value"])
    for name in ("acceptance", "tokens_per_call", "speed_up"):
        numbers[name] = number_or_nan((row.get("drafting") or {}).get(name))
    errors = row.get("errors") or {}
    for what in ("losses", "errors"):
        for head, values in enumerate(errors.get(what, ())):
            known = [
                (value, count)
                for value, count in zip(values, errors["counts"][head], strict=True)
                if value is not None
            ]
            total = sum(count for _, count in known)
            mean = math.nan
            if total:
                mean = sum(value * count for value, count in known) / total
            numbers[f"{what} of head {head}"] = mean
    return numbers


def _metrics(by_method: Mapping[str, Mapping[int, Row]]) -> dict[str, tuple[str, int]]:
    """Return all metrics in order: exact match, pass@k, the others, then those of each head."""
    names = {name for cells in by_method.values() for row in cells.values() for name in row}
    passes = sorted((one for one in names if one.startswith("pass@")), key=lambda n: int(n[5:]))
    heads = sorted(one for one in names if " of head " in one)
    found = {"exact_match": METRICS["exact_match"]}
    found |= {name: (name, 1) for name in passes}
    found |= METRICS
    return found | {
        name: (f"test {name}".replace("losses", "loss").replace("errors", "error"), -1)
        for name in heads
    }


def _figure(cells: Mapping[int, Mapping[str, float]], name: str) -> dict[str, Any]:
    values = [row.get(name, math.nan) for row in cells.values()]
    return figure(values).to_json()


def _difference(
    by_method: Mapping[str, Mapping[int, Mapping[str, float]]], ours: str, theirs: str, name: str
) -> dict[str, Any]:
    """Return the mean difference over the seeds that both have, with its interval."""
    first = by_method[ours]
    second = by_method[theirs]
    both = [seed for seed in first if seed in second]
    values = [first[seed].get(name, math.nan) - second[seed].get(name, math.nan) for seed in both]
    return figure(values).to_json()


def _variance(cells: Mapping[int, Mapping[str, float]]) -> float:
    logs = np.log([row["validation_loss"] for row in cells.values()])
    return float(np.var(logs, ddof=1))


def _errors(rows: Sequence[Row], method: str) -> dict[str, Any] | None:
    """Return losses and errors by head and class of difficulty, means over seeds."""
    tables = [row["errors"] for row in rows if row["method"] == method and row.get("errors")]
    shapes = {np.shape(one["losses"]) for one in tables}
    if len(shapes) != 1:  # the classes differ where the rarity has ties
        return None
    return {
        what: np.mean([np.array(one[what], float) for one in tables], axis=0).tolist()
        for what in ("losses", "errors")
    } | {"difficulty": tables[0]["difficulty"]}


def _verdicts(
    by_method: Mapping[str, Mapping[int, Mapping[str, float]]], method: str, against: str
) -> list[dict[str, Any]]:
    found = []
    for metric in ("exact_match", "validation_loss"):
        difference = _difference(by_method, method, against, metric)
        better = METRICS[metric][1]
        low = number_or_nan(difference["low"])
        high = number_or_nan(difference["high"])
        clear = 0
        if low > 0:
            clear = better
        elif high < 0:
            clear = -better
        found.append(
            {
                "method": method,
                "against": against,
                "metric": metric,
                "difference": difference,
                "clear": clear,
            }
        )
    return found
