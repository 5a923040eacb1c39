"""A comparison for the terminal, in 80 columns: methods, the best first, then the missed goals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainenv.compare.paired_rows import SUBJECT
from trainenv.report.comparison.comparison_record import Comparison
from trainenv.report.comparison.forest_plot import best_first, clear, closed, with_interval
from trainenv.report.drawing import formatting

MARKS = {False: ("missed", "bold yellow"), None: ("open  ", "dim")}


def comparison_text(comparison: Comparison) -> Group:
    """Make the tables for a rich console."""
    scenarios = formatting.counted(len(comparison.scenarios), "scenario")
    title = f"Final loss against no intervention, {scenarios}"
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column("method", no_wrap=True)
    gains = headroom(comparison)
    titles = ["change", "95 % interval", "loss", "events", "wasted", "lost"]
    if gains:  # the share that is wasted is among the goals
        titles[titles.index("wasted")] = "closed"
    for name in titles:
        table.add_column(name, justify="right", no_wrap=True)
    for row in best_first(comparison.rows("all")):
        change = row["against_nothing"]
        coloured = Text(
            formatting.change(change["value"]),
            style={-1: "green", 0: "", 1: "yellow"}[clear(change)],
        )
        share = formatting.share(row["wasted"]["value"])
        if gains:
            share = closed(row["headroom_closed"]["value"])
        numbers = (
            formatting.number(row["final_loss"]),
            formatting.whole(row["instability"]["value"]),
            share,
        )
        failures = row["diverged"] + row["failed"]
        table.add_row(
            row["method"],
            coloured,
            formatting.interval(change["low"], change["high"]).removesuffix(" %"),
            *numbers,
            str(failures or formatting.MISSING),
        )
    parts: list[RenderableType] = [table, Text(" ".join([measured_on(comparison), gains]).strip())]
    if SUBJECT in comparison.methods:
        parts += _goals(comparison.found["goals"])
    return Group(*parts)


def measured_on(comparison: Comparison) -> str:
    """Write the part of the corpus that the final losses are of."""
    parts = {scenario["measured_on"] for scenario in comparison.found["scenarios"].values()}
    if len(parts) > 1:
        return "Final losses are of the test part where a scenario has one, else of the validation."
    (part,) = parts
    return f"Final losses are of the {part} part of the text."


def headroom(comparison: Comparison) -> str:
    """Write the gains of the best open-loop settings; empty if the comparison has none."""
    if not comparison.found["headroom"]["references"]:
        return ""
    (row,) = [row for row in comparison.found["headroom"]["groups"] if row["group"] == "all"]
    return (
        "The best open-loop setting, chosen on other seeds, changes the final loss by "
        f"{_gain(row['honest_gain'])}; chosen on the same seed, by {_gain(row['bound_gain'])}."
    )


def _gain(figure: Mapping[str, Any]) -> str:
    """Write a gain as the change of the loss that it is, with its interval."""
    change = {"value": -figure["value"], "low": -figure["high"], "high": -figure["low"]}
    return with_interval(change)


def _goals(goals: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if not goals:
        return
    met = sum(goal["met"] is True for goal in goals)
    yield Text(f"{met} of {formatting.counted(len(goals), 'goal')} met", style="bold")
    for goal in goals:
        if goal["met"] is not True:
            parts = (f"  {goal['what']}: {goal['goal']}; ", (measurement(goal), "bold"))
            yield Padding(Text.assemble(MARKS[goal["met"]], *parts), (0, 0, 0, 1))


def measurement(goal: Mapping[str, Any]) -> str:
    """Write the measured value of a goal, if there is one."""
    if goal["measured"] is None:
        return "not measured yet"
    return f"measured {formatting.number(goal['measured'], 4)}"
