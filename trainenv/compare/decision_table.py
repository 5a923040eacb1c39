"""The second table: how often a method looked into the future, what it took of it, and how right it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.compare.bootstrap import Floats, figure
from trainenv.compare.paired_rows import Table, number


def decision_rows(
    table: Table,
    groups: Mapping[str, Sequence[str]],
    methods: Sequence[str],
    among: Sequence[str] = ("all", "calm", "stressed"),
) -> list[dict[str, Any]]:
    """A row for each of `among` and each method that decides.

    Figures: `invoked` (decisions per 1000 steps taken), `accepted` (share of the decisions that
    were verified), `gap` (between draft and measurement, nats of ln loss, mean over verified
    branches), `coverage` (of the draft's 90 % intervals), `verify_steps` (steps of verification a
    verified decision) and `verify_cost` (compute of verification, share of all of it).
    """
    return [
        found
        for group in among
        if group in groups
        for method in methods
        if (found := _row(table, group, groups[group], method)) is not None
    ]


def _row(table: Table, group: str, trunks: Sequence[str], method: str) -> dict[str, Any] | None:
    rows = [row for row in table.sound(trunks, method) if row["decisions"] is not None]
    if not rows:
        return None
    of = [row["trunk"] for row in rows]
    made = [row["decisions"] for row in rows]
    verified = [number(decisions["verified"]) for decisions in made]
    ratios = {
        "invoked": [
            (1000 * number(d["invoked"]), number(row["instability"]["steps"]))
            for d, row in zip(made, rows)
        ],
        "accepted": [(number(d["accepted"]), n) for d, n in zip(made, verified)],
        "gap": [_weighed(d["gap"], d.get("compared", n)) for d, n in zip(made, verified)],
        "coverage": [
            _weighed(d["coverage"], d.get("covered_of", n)) for d, n in zip(made, verified)
        ],
        "verify_steps": [(number(d["verify_steps"]), n) for d, n in zip(made, verified)],
        "verify_cost": [
            (
                number(d.get("verify_flops", row["flops"].get("verify", 0.0))),
                number(row["total_flops"]),
            )
            for d, row in zip(made, rows)
        ],
    }
    return {
        "group": group,
        "method": method,
        "cells": len(rows),
        **{name: figure(pairs, of, _ratio).to_json() for name, pairs in ratios.items()},
    }


def _weighed(value: Any, weight: float) -> tuple[float, float]:
    """A mean over the decisions of a run, to be averaged over all decisions; a run that has none has no say."""
    return (0.0, 0.0) if value is None else (number(value) * weight, weight)


def _ratio(means: Floats) -> Floats:
    return means[:, 0] / means[:, 1]
