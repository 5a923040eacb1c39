"""A comparison for the terminal, in 80 columns: a row a method, the best first, and the goals that were missed below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainenv.compare.paired_rows import SUBJECT
from trainenv.report.comparison.comparison_record import Comparison
from trainenv.report.comparison.forest_plot import best_first, clear
from trainenv.report.drawing import formatting

MARKS = {False: ("missed", "bold yellow"), None: ("open  ", "dim")}


def comparison_text(comparison: Comparison) -> Group:
    """To be printed on a rich console."""
    title = (
        f"Final loss against doing nothing, {formatting.counted(len(comparison.trunks), 'trunk')}"
    )
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
        lost = row["diverged"] + row["failed"]
        table.add_row(
            row["method"],
            coloured,
            formatting.interval(change["low"], change["high"]).removesuffix(" %"),
            *numbers,
            str(lost or formatting.NOTHING),
        )
    goals = comparison.found["goals"] if SUBJECT in comparison.methods else []
    met = sum(goal["met"] is True for goal in goals)
    count = (
        [Text(f"{met} of {formatting.counted(len(goals), 'goal')} met", style="bold")]
        if goals
        else []
    )
    return Group(table, *count, *(_goal(goal) for goal in goals if goal["met"] is not True))


def _goal(goal: Mapping[str, Any]) -> Padding:
    measured = (
        f"measured {formatting.number(goal['measured'], 4)}"
        if goal["measured"] is not None
        else "nothing to judge by yet"
    )
    text = Text.assemble(
        MARKS[goal["met"]], f"  {goal['what']}: {goal['goal']}; ", (measured, "bold")
    )
    return Padding(text, (0, 0, 0, 1))
