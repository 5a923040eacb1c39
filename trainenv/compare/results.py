"""Results of a comparison: methods, decisions, the best static settings in hindsight, goals.

`results.json` holds:

| key | is |
|---|---|
| `schema` | 2 |
| `suite`, `finished` | name of the suite; true if every cell is there |
| `cells` | {wanted, there, failed, diverged, seconds} |
| `scenarios` | by name, {group, fault, kind, measured_on} |
| `rows` | the rows of all cells |
| `methods` | a row for each (group, method), see `method_row` |
| `decisions` | a row for each (group, method), see `trainenv.compare.decision_table` |
| `hindsight` | [{scenario, method, log_final_loss, seeds}], the best static settings |
| `headroom` | {references, groups}, see `trainenv.compare.headroom` |
| `goals` | see `trainenv.compare.goals` |
| `failed` | [{scenario, seed, method, error}] |

Groups are `all`, `calm`, `stressed`, each fault, and each kind of scenario as `kind:KIND`. A figure
is {value, low, high, pairs, scenarios}, see `trainenv.compare.bootstrap`. Differences are of the
natural logarithm of the final loss, on the same scenario and seed; −0.01 is about 1 % better. Final
losses are of the part of the corpus that `measured_on` names, `test` or `validation`. A run that
diverged counts with the loss of a uniform guess. A cell that failed is only counted as failed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainenv.compare.bootstrap import Figure, Floats, figure
from trainenv.compare.cells import Row
from trainenv.compare.decision_table import decision_rows
from trainenv.compare.goals import KIND, goals
from trainenv.compare.headroom import Reference, headroom_closed, headroom_row, references
from trainenv.compare.paired_rows import SUBJECT, UNTOUCHED, Table
from trainenv.compare.scenarios import KINDS
from trainenv.compare.suite import Suite
from trainenv.tools.json_lines import number_or_nan

SHARES = ("wasted", "drafting")
# Static methods that compete; the names of the others begin with `_GRID`.
_CLIPPING = ("zclip", "arc", "spam", "skip_step", "adagc", "gradient_stabilizer", "clip-1.0")
_COMPETE = ("nothing", *_CLIPPING)
_GRID = "static-"


def results(suite: Suite, rows: Sequence[Row]) -> dict[str, Any]:
    """Return all that is found in the rows of a suite's cells."""
    table = Table.of(rows)
    groups = groups_of(suite)
    best = hindsight(suite, table)
    among = references(table, groups["all"], suite.open_loop)
    return {
        "schema": 2,
        "suite": suite.name,
        "finished": len(rows) == len(suite.scenarios) * suite.seeds * len(suite.played),
        "cells": {
            "wanted": len(suite.scenarios) * suite.seeds * len(suite.played),
            "there": len(rows),
            "failed": sum(row["ended"] == "failed" for row in rows),
            "diverged": sum(row["ended"] == "diverged" for row in rows),
            "seconds": round(sum(row["seconds"] or 0.0 for row in rows), 1),
        },
        "scenarios": {
            scenario.name: {
                "group": scenario.group,
                "fault": scenario.fault,
                "kind": scenario.kind,
                "measured_on": scenario.measured_on,
            }
            for scenario in suite.scenarios
        },
        "methods": [
            method_row(
                table, group, names, method, best, among, hindsight=method not in suite.methods
            )
            for group, names in groups.items()
            for method in suite.played
        ],
        "decisions": decision_rows(table, groups, suite.methods),
        "hindsight": list(best.values()),
        "headroom": {
            "references": [reference.to_json() for reference in among],
            "groups": [headroom_row(among, group, names) for group, names in groups.items()],
        },
        "goals": goals(table, groups, suite.methods, among),
        "failed": [
            {key: row[key] for key in ("scenario", "seed", "method", "error")}
            for row in rows
            if row["ended"] == "failed"
        ],
        "rows": list(rows),
    }


def groups_of(suite: Suite) -> dict[str, tuple[str, ...]]:
    """Return the scenarios of `all`, of `calm` and `stressed`, of each fault and of each kind."""
    faults = dict.fromkeys(scenario.fault for scenario in suite.scenarios if scenario.fault)
    groups = {
        "all": [scenario.name for scenario in suite.scenarios],
        "calm": [scenario.name for scenario in suite.scenarios if scenario.group == "calm"],
        "stressed": [scenario.name for scenario in suite.scenarios if scenario.group == "stressed"],
        **{
            fault: [scenario.name for scenario in suite.scenarios if scenario.fault == fault]
            for fault in faults
        },
        **{
            f"{KIND}{kind}": [
                scenario.name for scenario in suite.scenarios if scenario.kind == kind
            ]
            for kind in KINDS
            if kind
        },
    }
    return {group: tuple(names) for group, names in groups.items() if names}


def hindsight(suite: Suite, table: Table) -> dict[str, dict[str, Any]]:
    """Return the best static setting of each scenario, by its mean over seeds.

    It is chosen when the results are known, so it is a bound for what a method can reach. Settings
    that lack seeds which others have are left out.
    """
    best = {}
    for scenario in suite.scenarios:
        losses = {
            method: table.losses(scenario.name, method)
            for method in suite.played
            if is_static(method)
        }
        most = max((len(by_seed) for by_seed in losses.values()), default=0)
        whole = {
            method: by_seed for method, by_seed in losses.items() if most and len(by_seed) == most
        }
        if whole:
            means = {method: sum(by_seed.values()) / most for method, by_seed in whole.items()}
            method = min(means, key=lambda name: means[name])
            best[scenario.name] = {
                "scenario": scenario.name,
                "method": method,
                "log_final_loss": means[method],
                "seeds": most,
            }
    return best


def is_static(method: str) -> bool:
    """Tell by its name whether a method never changes its settings."""
    return method in _COMPETE or method.startswith(_GRID)


def method_row(
    table: Table,
    group: str,
    scenarios: Iterable[str],
    method: str,
    best: Mapping[str, Mapping[str, Any]],
    among: Iterable[Reference] = (),
    *,
    hindsight: bool = False,
) -> dict[str, Any]:
    """Return the results of a method on a group of scenarios.

    | key | is |
    |---|---|
    | `hindsight` | true for a method that does not compete, a reference only |
    | `cells`, `failed`, `diverged` | numbers of cells |
    | `final_loss` | geometric mean, nats per token |
    | `against_nothing` | figure: this method less doing nothing |
    | `branching_against` | figure: branching less this method |
    | `regret` | figure: this method less the best static setting of the scenario |
    | `headroom_closed` | figure: share of the headroom, see `trainenv.compare.headroom` |
    | `instability` | figure: events per 100 000 steps |
    | `recovery` | figure: mean steps |
    | `wasted`, `drafting` | figures: shares of its compute |
    | `spent` | figure: share of the budget |
    """
    names = tuple(scenarios)
    there = table.cells(names, method)
    rows = table.sound(names, method)
    of = [row["scenario"] for row in rows]
    figures = {
        "against_nothing": table.difference(names, method, UNTOUCHED),
        "branching_against": table.difference(names, SUBJECT, method),
        "regret": _regret(table, names, method, best),
        "headroom_closed": headroom_closed(table, among, names, method),
        "instability": figure([_events(row) for row in rows], of, _per_100k),
        "recovery": figure([_recovery(row) for row in rows], of, _ratio),
        **{share: figure([number_or_nan(row[share]) for row in rows], of) for share in SHARES},
        "spent": figure([_spent(row) for row in rows], of),
    }
    final_loss = math.nan
    if rows:
        final_loss = math.exp(sum(row["log_final_loss"] for row in rows) / len(rows))
    return {
        "group": group,
        "method": method,
        "hindsight": hindsight,
        "cells": len(there),
        "failed": len(there) - len(rows),
        "diverged": sum(row["ended"] == "diverged" for row in rows),
        "final_loss": final_loss,
        **{name: found.to_json() for name, found in figures.items()},
    }


def _regret(
    table: Table, scenarios: Sequence[str], method: str, best: Mapping[str, Mapping[str, Any]]
) -> Figure:
    values = []
    of = []
    for scenario in scenarios:
        if scenario not in best:
            continue
        reference = table.losses(scenario, best[scenario]["method"])
        for seed, loss in table.losses(scenario, method).items():
            if seed in reference:
                values.append(loss - reference[seed])
                of.append(scenario)
    return figure(values, of)


def _events(row: Row) -> tuple[float, float]:
    return number_or_nan(row["instability"]["events"]), number_or_nan(row["instability"]["steps"])


def _recovery(row: Row) -> tuple[float, float]:
    """Return the steps of all recoveries of a run, and their number; the mean is the ratio."""
    events = number_or_nan(row["recovery"]["events"] or 0)
    if not events:
        return 0.0, 0.0
    return number_or_nan(row["recovery"]["mean"]) * events, events


def _spent(row: Row) -> float:
    return number_or_nan(row["total_flops"]) / number_or_nan(row["budget"])


def _per_100k(means: Floats) -> Floats:
    return 1e5 * means[:, 0] / means[:, 1]


def _ratio(means: Floats) -> Floats:
    return means[:, 0] / means[:, 1]
