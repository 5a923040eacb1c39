"""From rows to what was found: a table of methods, one of decisions, the best static setting in hindsight, goals.

`results.json` holds:

| key | is |
|---|---|
| `suite`, `finished` | its name; whether every cell is there |
| `cells` | {wanted, there, failed, diverged, seconds} |
| `trunks` | by name, {group, fault} |
| `rows` | the cells, as they are kept |
| `methods` | a row a (group, method), see `method_row`; groups are `all`, `calm`, `stressed` and each fault |
| `decisions` | likewise, see `trainenv.compare.decision_table` |
| `hindsight` | the best static setting of each trunk: {trunk, method, log_final_loss, seeds} |
| `goals` | see `trainenv.compare.goals` |
| `failed` | [{trunk, seed, method, error}] |

A figure is {value, low, high, pairs, trunks}: see `trainenv.compare.bootstrap`. Differences are of
the natural logarithm of the final validation loss, on the same trunk and seed; −0.01 is about 1 %
better. A run that diverged counts with the loss of a uniform guess; a cell that failed counts
nowhere but among the failed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainenv.compare.bootstrap import Figure, Floats, figure
from trainenv.compare.cells import Row
from trainenv.compare.decision_table import decision_rows
from trainenv.compare.goals import goals
from trainenv.compare.paired_rows import SUBJECT, UNTOUCHED, Table, number
from trainenv.compare.suite import Suite

SHARES = ("wasted", "drafting")
_COMPETE = (
    "nothing",
    "zclip",
    "arc",
    "spam",
    "clip-1.0",
)  # static methods that are competitors too
_GRID = "static-"  # starts the names of the others


def results(suite: Suite, rows: Sequence[Row]) -> dict[str, Any]:
    """All that is found in the rows of a suite's cells."""
    table = Table.of(rows)
    groups = groups_of(suite)
    best = hindsight(suite, table)
    return {
        "schema": 1,
        "suite": suite.name,
        "finished": len(rows) == len(suite.trunks) * suite.seeds * len(suite.played),
        "cells": {
            "wanted": len(suite.trunks) * suite.seeds * len(suite.played),
            "there": len(rows),
            "failed": sum(row["ended"] == "failed" for row in rows),
            "diverged": sum(row["ended"] == "diverged" for row in rows),
            "seconds": round(sum(row["seconds"] or 0.0 for row in rows), 1),
        },
        "trunks": {
            trunk.name: {"group": trunk.group, "fault": trunk.fault} for trunk in suite.trunks
        },
        "methods": [
            method_row(table, group, names, method, best, hindsight=method in suite.hindsight)
            for group, names in groups.items()
            for method in suite.played
        ],
        "decisions": decision_rows(table, groups, suite.methods),
        "hindsight": list(best.values()),
        "goals": goals(table, groups, suite.methods),
        "failed": [
            {key: row[key] for key in ("trunk", "seed", "method", "error")}
            for row in rows
            if row["ended"] == "failed"
        ],
        "rows": list(rows),
    }


def groups_of(suite: Suite) -> dict[str, tuple[str, ...]]:
    """The trunks of `all`, of `calm` and `stressed`, and of each fault."""
    faults = dict.fromkeys(trunk.fault for trunk in suite.trunks if trunk.fault)
    groups = {
        "all": [trunk.name for trunk in suite.trunks],
        "calm": [trunk.name for trunk in suite.trunks if trunk.group == "calm"],
        "stressed": [trunk.name for trunk in suite.trunks if trunk.group == "stressed"],
        **{
            fault: [trunk.name for trunk in suite.trunks if trunk.fault == fault]
            for fault in faults
        },
    }
    return {group: tuple(names) for group, names in groups.items() if names}


def hindsight(suite: Suite, table: Table) -> dict[str, dict[str, Any]]:
    """The best static setting of each trunk, by its mean over seeds: chosen with the results known, so that it is a bound.

    Settings that lack seeds which others have are passed over.
    """
    best = {}
    for trunk in suite.trunks:
        losses = {
            method: table.losses(trunk.name, method) for method in suite.played if is_static(method)
        }
        most = max((len(by_seed) for by_seed in losses.values()), default=0)
        whole = {
            method: by_seed for method, by_seed in losses.items() if most and len(by_seed) == most
        }
        if whole:
            means = {method: sum(by_seed.values()) / most for method, by_seed in whole.items()}
            method = min(means, key=lambda name: means[name])
            best[trunk.name] = {
                "trunk": trunk.name,
                "method": method,
                "log_final_loss": means[method],
                "seeds": most,
            }
    return best


def is_static(method: str) -> bool:
    """Whether a method leaves its settings alone, to judge by its name."""
    return method in _COMPETE or method.startswith(_GRID)


def method_row(
    table: Table,
    group: str,
    trunks: Iterable[str],
    method: str,
    best: Mapping[str, Mapping[str, Any]],
    *,
    hindsight: bool = False,
) -> dict[str, Any]:
    """What is found of a method on a group of trunks.

    Returns:
        `cells`, `failed`, `diverged`: how many; `final_loss`: geometric mean, nats per token;
            figures: `against_nothing` (this
        method less doing nothing), `branching_against` (branching less this method), `regret` (this
        method less the best static setting of the trunk), `instability` (events per 100 000 steps),
        `recovery` (mean steps), `wasted`, `drafting` (shares of its compute) and `spent` (share of
        the budget); `hindsight`: no competitor, only a reference.
    """
    names = tuple(trunks)
    there = table.cells(names, method)
    rows = table.sound(names, method)
    of = [row["trunk"] for row in rows]
    figures = {
        "against_nothing": table.difference(names, method, UNTOUCHED),
        "branching_against": table.difference(names, SUBJECT, method),
        "regret": _regret(table, names, method, best),
        "instability": figure([_events(row) for row in rows], of, _per_100k),
        "recovery": figure([_recovery(row) for row in rows], of, _ratio),
        **{share: figure([number(row[share]) for row in rows], of) for share in SHARES},
        "spent": figure([number(row["total_flops"]) / number(row["budget"]) for row in rows], of),
    }
    logs = [row["log_final_loss"] for row in rows]
    return {
        "group": group,
        "method": method,
        "hindsight": hindsight,
        "cells": len(there),
        "failed": len(there) - len(rows),
        "diverged": sum(row["ended"] == "diverged" for row in rows),
        "final_loss": math.exp(sum(logs) / len(logs)) if logs else math.nan,
        **{name: found.to_json() for name, found in figures.items()},
    }


def _regret(
    table: Table, trunks: Sequence[str], method: str, best: Mapping[str, Mapping[str, Any]]
) -> Figure:
    values = []
    of = []
    for trunk in trunks:
        reference = table.losses(trunk, best[trunk]["method"]) if trunk in best else {}
        for seed, loss in table.losses(trunk, method).items():
            if seed in reference:
                values.append(loss - reference[seed])
                of.append(trunk)
    return figure(values, of)


def _events(row: Row) -> tuple[float, float]:
    return number(row["instability"]["events"]), number(row["instability"]["steps"])


def _recovery(row: Row) -> tuple[float, float]:
    """Steps of recovering and events that were recovered from, of a run: the mean over all of them is their ratio."""
    events = number(row["recovery"]["events"] or 0)
    return (number(row["recovery"]["mean"]) * events, events) if events else (0.0, 0.0)


def _per_100k(means: Floats) -> Floats:
    return 1e5 * means[:, 0] / means[:, 1]


def _ratio(means: Floats) -> Floats:
    return means[:, 0] / means[:, 1]
