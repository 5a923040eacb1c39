"""What the loop is to show, checked one by one against what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainenv.compare.bootstrap import Figure, Floats, figure
from trainenv.compare.paired_rows import SUBJECT, UNTOUCHED, Table, number

HARMLESS = 0.002  # of ln loss: what a calm run may be worse by
FEWER = 0.8  # of the instability events
# shares of compute, at most
WASTED = 0.1
DRAFTING = 0.01
POPULATION = "pbt"
QUARTER = "branching-quarter"
QUARTERED = 0.25  # of the population's compute


def goals(
    table: Table, groups: Mapping[str, Sequence[str]], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """[{what, goal, measured, interval, met}]; all null but the words where there is nothing to judge by.

    Where a goal speaks of an interval, the whole of it must keep the goal, else the measured value.
    """
    calm = groups.get("calm", ())
    stressed = groups.get("stressed", ())
    every = groups.get("all", ())
    others = [method for method in methods if method not in (SUBJECT, QUARTER)]
    found = []
    for other in others:
        better = table.difference(stressed, SUBJECT, other)
        what = f"{SUBJECT} less {other} on stressed trunks, ln final loss"
        found.append(_goal(what, "below 0, interval and all", better, better.high < 0))
    calmly = table.difference(calm, SUBJECT, UNTOUCHED)
    what = f"{SUBJECT} less {UNTOUCHED} on calm trunks, ln final loss"
    found.append(
        _goal(what, f"at most {HARMLESS:g}, interval and all", calmly, calmly.high <= HARMLESS)
    )
    quarter = table.difference(every, QUARTER, POPULATION)
    share = _compute(table, every)
    fewer = _fewer(table, stressed)
    wasted, drafting = (_share(table, every, name) for name in ("wasted", "drafting"))
    return [
        *found,
        _goal(
            f"{QUARTER} less {POPULATION}, ln final loss", "at most 0", quarter, quarter.value <= 0
        ),
        _goal(
            f"compute of {QUARTER} over that of {POPULATION}",
            f"at most {QUARTERED:g}",
            share,
            share.value <= QUARTERED * 1.01,
        ),
        _goal(
            f"share of the instability events of {UNTOUCHED} that {SUBJECT} avoids, stressed trunks",
            f"at least {FEWER:g}",
            fewer,
            fewer.value >= FEWER,
        ),
        _goal(
            f"compute that {SUBJECT} wasted, share",
            f"at most {WASTED:g}",
            wasted,
            wasted.value <= WASTED,
        ),
        _goal(
            f"compute that {SUBJECT} drafted with, share",
            f"at most {DRAFTING:g}",
            drafting,
            drafting.value <= DRAFTING,
        ),
    ]


def _goal(what: str, goal: str, found: Figure, met: bool) -> dict[str, Any]:
    if math.isnan(found.value):
        return {"what": what, "goal": goal, "measured": None, "interval": None, "met": None}
    known = not math.isnan(found.low)
    interval = [found.low, found.high] if known else None
    return {
        "what": what,
        "goal": goal,
        "measured": found.value,
        "interval": interval,
        "met": bool(met),
    }


def _fewer(table: Table, trunks: Sequence[str]) -> Figure:
    """1 − (events a step) ÷ (events a step of doing nothing)."""
    pairs = table.pairs(trunks, SUBJECT, UNTOUCHED)
    rates = [
        [number(row["instability"][key]) for row in pair for key in ("events", "steps")]
        for pair in pairs
    ]
    return figure(rates, [mine["trunk"] for mine, _ in pairs], _avoided)


def _avoided(means: Floats) -> Floats:
    return 1 - (means[:, 0] / means[:, 1]) / (means[:, 2] / means[:, 3])


def _compute(table: Table, trunks: Sequence[str]) -> Figure:
    pairs = table.pairs(trunks, QUARTER, POPULATION)
    spent = [[number(row["total_flops"]) for row in pair] for pair in pairs]
    return figure(
        spent, [mine["trunk"] for mine, _ in pairs], lambda means: means[:, 0] / means[:, 1]
    )


def _share(table: Table, trunks: Sequence[str], name: str) -> Figure:
    rows = table.sound(trunks, SUBJECT)
    return figure([number(row[name]) for row in rows], [row["trunk"] for row in rows])
