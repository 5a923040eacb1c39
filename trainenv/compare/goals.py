"""Goals of the branching loop, each checked against what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainenv.compare.bootstrap import Figure, Floats, figure
from trainenv.compare.headroom import Reference, headroom_closed
from trainenv.compare.paired_rows import SUBJECT, UNTOUCHED, Table
from trainenv.tools.json_lines import number_or_nan

HARMLESS = 0.002  # greatest loss on calm runs, in ln of the final loss
FEWER = 0.8  # least share of the instability events that are avoided
WASTED = 0.1  # greatest share of compute that is wasted
DRAFTING = 0.01  # greatest share of compute that drafts take
CLOSED = {"mis-set": 0.8, "faults": 0.6}  # least share of the headroom that is closed, by kind
WORST = 0.005  # greatest mean loss on any scenario, in ln of the final loss
KIND = "kind:"  # prefix of the name of a group that holds the scenarios of a kind
POPULATION = "pbt"
QUARTER = "branching-quarter"
QUARTERED = 0.25  # share of the population's compute that `QUARTER` may take


def goals(
    table: Table,
    groups: Mapping[str, Sequence[str]],
    methods: Sequence[str],
    among: Sequence[Reference] = (),
) -> list[dict[str, Any]]:
    """Check every goal. Those of headroom are left out where there is no reference for it.

    Returns:
        [{what, goal, measured, interval, met}], a dict for each goal. A goal that speaks of an
        interval is met if the whole interval keeps it, else if the measured value does. `measured`,
        `interval` and `met` are None if there is nothing to judge by; `met` is None too where the
        subject has runs of a single seed.
    """
    found = list(_judged(table, groups, methods, among))
    seeds = {row["seed"] for row in table.cells(groups.get("all", ()), SUBJECT)}
    if len(seeds) == 1:
        return [{**goal, "met": None} for goal in found]
    return found


def _judged(
    table: Table,
    groups: Mapping[str, Sequence[str]],
    methods: Sequence[str],
    among: Sequence[Reference],
) -> Iterator[dict[str, Any]]:
    """Check every goal, however many seeds there are."""
    calm = groups.get("calm", ())
    stressed = groups.get("stressed", ())
    every = groups.get("all", ())
    yield from (
        _better(table, stressed, other) for other in methods if other not in (SUBJECT, QUARTER)
    )
    yield _harmless(table, calm)
    yield _worst(table, every)
    yield from _closed(table, groups, among)
    yield _quarter_as_good(table, every)
    yield _quarter_costs(table, every)
    yield _fewer_events(table, stressed)
    yield _share(table, every, "wasted", f"compute that {SUBJECT} wasted, share", WASTED)
    yield _share(table, every, "drafting", f"compute that {SUBJECT} drafted with, share", DRAFTING)


def _better(table: Table, stressed: Sequence[str], other: str) -> dict[str, Any]:
    found = table.difference(stressed, SUBJECT, other)
    what = f"{SUBJECT} against {other} on stressed scenarios, ln final loss"
    return _goal(what, "below 0, interval and all", found, found.high < 0)


def _harmless(table: Table, calm: Sequence[str]) -> dict[str, Any]:
    found = table.difference(calm, SUBJECT, UNTOUCHED)
    what = f"{SUBJECT} against {UNTOUCHED} on calm scenarios, ln final loss"
    return _goal(what, f"at most {HARMLESS:g}, interval and all", found, found.high <= HARMLESS)


def _worst(table: Table, scenarios: Sequence[str]) -> dict[str, Any]:
    """Check the scenario where the mean is worst; the interval is that of this scenario."""
    found = {name: table.difference([name], SUBJECT, UNTOUCHED) for name in scenarios}
    known = {name: one for name, one in found.items() if not math.isnan(one.value)}
    worst = max(known, key=lambda name: known[name].value, default="")
    what = f"{SUBJECT} against {UNTOUCHED} on its worst scenario"
    if worst:
        what += f" ({worst})"
    mean = known.get(worst, Figure())
    return _goal(f"{what}, mean ln final loss", f"at most {WORST:g}", mean, mean.value <= WORST)


def _closed(
    table: Table, groups: Mapping[str, Sequence[str]], among: Sequence[Reference]
) -> Iterator[dict[str, Any]]:
    """Check the headroom closed on each kind of scenario that has references."""
    for kind, least in CLOSED.items():
        scenarios = groups.get(f"{KIND}{kind}", ())
        if any(one.scenario in scenarios for one in among):
            found = headroom_closed(table, among, scenarios, SUBJECT)
            what = f"headroom that {SUBJECT} closes on scenarios of the kind {kind}, share"
            yield _goal(what, f"at least {least:g}", found, found.value >= least)


def _quarter_as_good(table: Table, scenarios: Sequence[str]) -> dict[str, Any]:
    found = table.difference(scenarios, QUARTER, POPULATION)
    what = f"{QUARTER} against {POPULATION}, ln final loss"
    return _goal(what, "at most 0", found, found.value <= 0)


def _quarter_costs(table: Table, scenarios: Sequence[str]) -> dict[str, Any]:
    pairs = table.pairs(scenarios, QUARTER, POPULATION)
    spent = [[number_or_nan(row["total_flops"]) for row in pair] for pair in pairs]
    found = figure(spent, [mine["scenario"] for mine, _ in pairs], _ratio)
    what = f"compute of {QUARTER} over that of {POPULATION}"
    return _goal(what, f"at most {QUARTERED:g}", found, found.value <= QUARTERED * 1.01)


def _fewer_events(table: Table, stressed: Sequence[str]) -> dict[str, Any]:
    """1 − (events a step) ÷ (events a step of doing nothing)."""
    pairs = table.pairs(stressed, SUBJECT, UNTOUCHED)
    rates = [
        [number_or_nan(row["instability"][key]) for row in pair for key in ("events", "steps")]
        for pair in pairs
    ]
    found = figure(rates, [mine["scenario"] for mine, _ in pairs], _avoided)
    what = f"instability events of {UNTOUCHED} that {SUBJECT} avoids on stressed scenarios, share"
    return _goal(what, f"at least {FEWER:g}", found, found.value >= FEWER)


def _share(
    table: Table, scenarios: Sequence[str], name: str, what: str, most: float
) -> dict[str, Any]:
    rows = table.sound(scenarios, SUBJECT)
    found = figure([number_or_nan(row[name]) for row in rows], [row["scenario"] for row in rows])
    return _goal(what, f"at most {most:g}", found, found.value <= most)


def _goal(what: str, goal: str, found: Figure, met: bool) -> dict[str, Any]:
    if math.isnan(found.value):
        return {"what": what, "goal": goal, "measured": None, "interval": None, "met": None}
    interval = None
    if not math.isnan(found.low):
        interval = [found.low, found.high]
    return {
        "what": what,
        "goal": goal,
        "measured": found.value,
        "interval": interval,
        "met": bool(met),
    }


def _avoided(means: Floats) -> Floats:
    return 1 - (means[:, 0] / means[:, 1]) / (means[:, 2] / means[:, 3])


def _ratio(means: Floats) -> Floats:
    return means[:, 0] / means[:, 1]
