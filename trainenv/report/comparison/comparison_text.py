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
from trainenv.report.comparison.forest_plot import best_first, clear
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
    for name in ("change", "95 % interval", "loss", "events", "wasted", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in best_first(comparison.rows("all")):
        change = row["against_nothing"]
        coloured = Text(
            formatting.change(change["value"]),
            style={-1: "green", 0: "", 1: "yellow"}[clear(change)],
        )
        numbers = (
            formatting.number(row["final_loss"]),
            formatting.whole(row["instability"]["value"]),
            formatting.share(row["wasted"]["value"]),
        )
        failures = row["diverged"] + row["failed"]
        table.add_row(
            row["method"],
            coloured,
            formatting.interval(change["low"], change["high"]).removesuffix(" %"),
            *numbers,
            str(failures or formatting.MISSING),
        )
    parts: list[RenderableType] = [table]
    if SUBJECT in comparison.methods:
        parts += _goals(comparison.found["goals"])
    return Group(*parts)


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
