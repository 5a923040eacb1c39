"""The table of decisions: how often methods decide, what they accept, how right they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.compare.bootstrap import Floats, figure
from trainenv.compare.cells import Row
from trainenv.compare.paired_rows import Table
from trainenv.tools.json_lines import number_or_nan

_GROUPS = ("all", "calm", "stressed")
Ratio = tuple[float, float]
"""Numerator and denominator of one run; a figure is the ratio of their means over runs."""


def decision_rows(
    table: Table,
    groups: Mapping[str, Sequence[str]],
    methods: Sequence[str],
    among: Sequence[str] = _GROUPS,
) -> list[dict[str, Any]]:
    """Return a row for each group in `among` and each method that decides.

    | figure | is |
    |---|---|
    | `invoked` | decisions per 1000 steps taken |
    | `accepted` | accepted decisions, share of the verified ones |
    | `gap` | absolute error of the draft, nats of ln loss, mean over verified branches |
    | `coverage` | measured values inside the draft's 90 % interval, share |
    | `verify_steps` | steps of verification for each verified decision |
    | `verify_cost` | compute of verification, share of all compute |
    """
    rows = []
    for group in among:
        for method in methods:
            decided = [
                row
                for row in table.sound(groups.get(group, ()), method)
                if row["decisions"] is not None
            ]
            if decided:
                rows.append({"group": group, "method": method, **_figures(decided)})
    return rows


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the number of cells and all figures, of cells that have decisions."""
    scenarios = [row["scenario"] for row in rows]
    ratios = [_ratios(row) for row in rows]
    return {
        "cells": len(rows),
        **{
            name: figure([one[name] for one in ratios], scenarios, _ratio).to_json()
            for name in ratios[0]
        },
    }


def _ratios(row: Row) -> dict[str, Ratio]:
    """Return the ratio of one run behind each figure."""
    made = row["decisions"]
    verified = number_or_nan(made["verified"])
    steps = number_or_nan(row["instability"]["steps"])
    verify_flops = made.get("verify_flops", row["flops"].get("verify", 0.0))
    return {
        "invoked": (1000 * number_or_nan(made["invoked"]), steps),
        "accepted": (number_or_nan(made["accepted"]), verified),
        "gap": _weighted(made["gap"], made.get("compared", verified)),
        "coverage": _weighted(made["coverage"], made.get("covered_of", verified)),
        "verify_steps": (number_or_nan(made["verify_steps"]), verified),
        "verify_cost": (number_or_nan(verify_flops), number_or_nan(row["total_flops"])),
    }


def _weighted(mean: Any, count: float) -> Ratio:
    """Return sum and count behind a mean; a run without a mean has weight 0."""
    if mean is None:
        return 0.0, 0.0
    return number_or_nan(mean) * count, count


def _ratio(means: Floats) -> Floats:
    return means[:, 0] / means[:, 1]
