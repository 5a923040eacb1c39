"""Screen of a comparison: a progress line while it works, tables at its end."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from trainenv.cli.progress import ProgressLine
from trainenv.compare.runner import Progress

_LINES = 20  # of progress in a file or a pipe
_WIDEST = 1000  # characters of a table there, where no window cuts it
_FAULTS_PER_TABLE = 7
_FAILURES = 10  # failed cells that are listed one by one


class Screen(ProgressLine):
    """Progress and results of a comparison.

    Args:
        title: Name of the work.
        total: Number of cells.
        quiet: True to print nothing on stdout, which is kept for JSON.
    """

    def __init__(self, title: str, total: int, *, quiet: bool) -> None:
        width = None
        if not sys.stdout.isatty():
            width = _WIDEST
        super().__init__(title, total, quiet=quiet, lines=_LINES, width=width)

    def progress(self, progress: Progress) -> None:
        """Show how many cells are done; a cell that failed always gets a line."""
        row = progress.row
        left = f"about {minutes(progress.seconds_left)} left"
        if row["error"]:
            self.err.print(
                f"{row['method']} on {row['scenario']}, seed {row['seed']}, failed: {row['error']}",
                markup=False,
            )
        self.update(
            progress.done,
            progress.total,
            note=f"{left}, {row['method']} on {row['scenario']}",
            line=f"{progress.done} of {progress.total} cells, {left}",
        )

    def tables(self, found: Mapping[str, Any]) -> None:
        """Print the tables of what `trainenv.compare.results.results` found."""
        for group in ("stressed", "calm"):
            rows = [
                row
                for row in found["methods"]
                if row["group"] == group and not row["hindsight"] and row["cells"]
            ]
            if rows:
                scenarios = max(row["regret"]["scenarios"] for row in rows)
                self.out.print(
                    _methods_table(f"{group.capitalize()} scenarios ({scenarios})", rows)
                )
        if found["rows"] and any(scenario["fault"] for scenario in found["scenarios"].values()):
            for table in _fault_tables(found):
                self.out.print(table)
        if rows := [row for row in found["decisions"] if row["group"] in ("stressed", "calm")]:
            self.out.print(_decisions_table(rows))
        if rows := [goal for goal in found["goals"] if goal["measured"] is not None]:
            self.out.print(_goals_table(rows))
        settings = ", ".join(f"{best['scenario']}: {best['method']}" for best in found["hindsight"])
        if settings:
            self.say(f"Best static setting in hindsight (regret is against it): {settings}.")
        if found["headroom"]["references"]:
            self.out.print(_headroom_table(found["headroom"]["groups"]))
        self.say(counts(found))


def counts(found: Mapping[str, Any]) -> str:
    """Describe how many cells there are, how many diverged, and which failed."""
    cells = found["cells"]
    failed = found["failed"]
    lines = [
        f"{cells['there']} of {cells['wanted']} cells, {cells['diverged']} diverged,"
        f" {cells['failed']} failed."
    ]
    lines += [
        f"  {cell['method']} on {cell['scenario']}, seed {cell['seed']}: {cell['error']}"
        for cell in failed[:_FAILURES]
    ]
    if len(failed) > _FAILURES:
        lines.append(f"  and {len(failed) - _FAILURES} more, see results.json")
    return "\n".join(lines)


def minutes(seconds: float) -> str:
    """Describe a duration in minutes or hours."""
    if seconds < 50:
        return "a minute"
    if seconds < 7200:
        return f"{max(2, math.ceil(seconds / 60))} minutes"
    return f"{seconds / 3600:.1f} hours"


def _methods_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Make a table of the methods, the best first.

    `change %` compares a method's final loss with that of doing nothing; `branching` compares the
    loop with the method; `closed %` is the share of the headroom that the method closes.
    """
    table = _table(
        f"{title}: change of the final loss against doing nothing [95 % interval],"
        " and of branching against the method",
        "method",
        "change %",
        "branching",
        "loss",
        "regret %",
        "closed %",
        "events",
        "heals in",
        "waste %",
        "draft %",
        "lost",
    )
    for row in sorted(rows, key=lambda row: _order(row["against_nothing"]["value"])):
        table.add_row(
            row["method"],
            _with_interval(_percent(row["against_nothing"]), "{:+.1f}"),
            _plain(_percent(row["branching_against"])["value"], "{:+.1f}"),
            _plain(row["final_loss"], "{:.3f}"),
            _plain(_percent(row["regret"])["value"], "{:+.1f}"),
            _plain(row["headroom_closed"]["value"], "{:.0f}", 100),
            _plain(row["instability"]["value"], "{:.0f}"),
            _plain(row["recovery"]["value"], "{:.0f}"),
            *(_plain(row[key]["value"], "{:.1f}", 100) for key in ("wasted", "drafting")),
            str(row["failed"] + row["diverged"] or "–"),
        )
    return table


def _order(change: float | None) -> float:
    """Return the place of a change in the order of methods; one that is not known counts as 0."""
    if change is None or math.isnan(change):
        return 0.0
    return change


def _fault_tables(found: Mapping[str, Any]) -> list[Table]:
    """Make tables of the change against doing nothing with one column per fault."""
    rows = [row for row in found["methods"] if not row["hindsight"] and row["cells"]]
    faults = list(
        dict.fromkeys(
            row["group"] for row in rows if row["group"] not in ("all", "calm", "stressed")
        )
    )
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "nothing"))
    by = {(row["group"], row["method"]): row["against_nothing"] for row in rows}
    unknown = {"value": None, "low": None, "high": None}
    tables = []
    for at in range(0, len(faults), _FAULTS_PER_TABLE):
        part = faults[at : at + _FAULTS_PER_TABLE]
        table = _table("Change of the final loss against doing nothing, %", "method", *part)
        for method in methods:
            changes = (_percent(by.get((fault, method), unknown)) for fault in part)
            table.add_row(method, *(_plain(change["value"], "{:+.1f}") for change in changes))
        tables.append(table)
    return tables


def _decisions_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "Decisions",
        "scenarios",
        "method",
        "per 1000 steps",
        "accepted %",
        "gap",
        "coverage %",
        "steps per branch",
        "cost %",
    )
    for row in rows:
        table.add_row(
            row["group"],
            row["method"],
            _plain(row["invoked"]["value"], "{:.1f}"),
            _plain(row["accepted"]["value"], "{:.0f}", 100),
            _plain(row["gap"]["value"], "{:.4f}"),
            _plain(row["coverage"]["value"], "{:.0f}", 100),
            _plain(row["verify_steps"]["value"], "{:.0f}"),
            _plain(row["verify_cost"]["value"], "{:.1f}", 100),
        )
    return table


def _headroom_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Make a table of the gains of open-loop references, by group."""
    table = _table(
        "Headroom: gain of the best open-loop setting in ln final loss [95 % interval]",
        "scenarios",
        "chosen on other seeds",
        "on the same seed",
    )
    for row in rows:
        gains = (_with_interval(row[key], "{:+.4f}") for key in ("honest_gain", "bound_gain"))
        table.add_row(row["group"], *gains)
    return table


def _goals_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Goals", "what", "goal", "measured", "met")
    for row in rows:
        low, high = row["interval"] or (None, None)
        measured = _with_interval({"value": row["measured"], "low": low, "high": high}, "{:.4f}")
        table.add_row(row["what"], row["goal"], measured, {True: "yes", False: "NO"}[row["met"]])
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column(first, no_wrap=first != "what")
    for name in others:
        table.add_column(name, justify="right", no_wrap=name == "change %")
    return table


def _plain(value: float | None, form: str, factor: float = 1.0) -> str:
    """Format a number; a dash if it is not known."""
    if value is None or math.isnan(value):
        return "–"
    return form.format(factor * value)


def _percent(figure: Mapping[str, Any]) -> dict[str, Any]:
    """Turn differences of ln loss into changes of the loss in percent."""
    percent: dict[str, Any] = dict.fromkeys(("value", "low", "high"))
    for key in percent:
        if figure[key] is not None:
            percent[key] = 100 * math.expm1(figure[key])
    return percent


def _with_interval(figure: Mapping[str, Any], form: str) -> str:
    """Format a number with its interval, if that is known."""
    value, low, high = (_plain(figure[key], form) for key in ("value", "low", "high"))
    if low == "–":
        return value
    return f"{value} [{low}, {high}]"
