"""What a person sees of a comparison: a line with the time left while it works, tables at its end."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from trainenv.compare.runner import Progress

_TOLD = 20  # lines of progress where nobody watches
# faults beside one another; characters of any table
_ABREAST = 7
_WIDEST = 1000
_FAILED = 10  # failed cells that are told one by one


class Screen:
    """A progress line on stderr; tables and sentences on stdout. Quiet says nothing on stdout.

    Args:
        title: what is going on.
        total: cells.
        quiet: whether stdout is kept for JSON.
    """

    def __init__(self, title: str, total: int, *, quiet: bool) -> None:
        # In a file or a pipe nobody's window cuts tables off.
        self._out = Console(
            quiet=quiet, highlight=False, width=None if sys.stdout.isatty() else _WIDEST
        )
        self._err = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description:>11}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bar = Bar(*columns, console=self._err, disable=not self._err.is_terminal)
        self._task = self._bar.add_task(title, total=total, note="")
        self._title = title
        self._told = 0

    def __enter__(self) -> Screen:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._bar.disable:  # rich ends its line even so, before version 14
            self._bar.stop()

    def progress(self, progress: Progress) -> None:
        """Show where the comparison is, after a cell; one that failed always has its line."""
        row = progress.row
        left = f"about {minutes(progress.seconds_left)} left"
        note = f"{left}, {row['method']} on {row['trunk']}"
        self._bar.update(self._task, completed=progress.done, total=progress.total, note=note)
        if row["error"]:
            self._err.print(
                f"{row['method']} on {row['trunk']}, seed {row['seed']}, failed: {row['error']}",
                markup=False,
            )
        part = _TOLD * progress.done // max(progress.total, 1)
        if not self._err.is_terminal and part > self._told:
            self._err.print(
                f"{self._title}: {progress.done} of {progress.total} cells, {left}", markup=False
            )
            self._told = part

    def say(self, sentence: str) -> None:
        """A sentence on stdout."""
        self._out.print(sentence, soft_wrap=True, markup=False)

    def tables(self, found: Mapping[str, Any]) -> None:
        """Everything that `trainenv.compare.results.results` found, as far as a person wants to read it."""
        for group in ("stressed", "calm"):
            rows = [
                row
                for row in found["methods"]
                if row["group"] == group and not row["hindsight"] and row["cells"]
            ]
            if rows:
                trunks = max(row["regret"]["trunks"] for row in rows)
                self._out.print(_methods(f"{group.capitalize()} trunks ({trunks})", rows))
        if found["rows"] and any(trunk["fault"] for trunk in found["trunks"].values()):
            for table in _faults(found):
                self._out.print(table)
        if rows := [row for row in found["decisions"] if row["group"] in ("stressed", "calm")]:
            self._out.print(_decisions(rows))
        if rows := [goal for goal in found["goals"] if goal["measured"] is not None]:
            self._out.print(_goals(rows))
        settings = ", ".join(f"{best['trunk']}: {best['method']}" for best in found["hindsight"])
        if settings:
            self.say(f"Best static setting in hindsight (regret is against it): {settings}.")
        self.say(counts(found))


def counts(found: Mapping[str, Any]) -> str:
    """How many cells there are, failed and diverged, and which failed, in sentences."""
    cells = found["cells"]
    failed = found["failed"]
    said = f"{cells['there']} of {cells['wanted']} cells, {cells['diverged']} diverged, {cells['failed']} failed."
    for cell in failed[:_FAILED]:
        said += f"\n  {cell['method']} on {cell['trunk']}, seed {cell['seed']}: {cell['error']}"
    return said + (
        f"\n  and {len(failed) - _FAILED} more, see results.json" if len(failed) > _FAILED else ""
    )


def minutes(seconds: float) -> str:
    """A time in words."""
    if seconds < 50:
        return "a minute"
    return (
        f"{max(2, math.ceil(seconds / 60))} minutes"
        if seconds < 7200
        else f"{seconds / 3600:.1f} hours"
    )


def _methods(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Best first.

    Changes are of the final loss, to doing nothing; `branching` is the loop's own change to that
    method.
    """
    title += ": change of the final loss to doing nothing [95 % interval], and of branching to the method"
    table = _table(
        title,
        "method",
        "change %",
        "branching",
        "loss",
        "regret %",
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
            _plain(row["instability"]["value"], "{:.0f}"),
            _plain(row["recovery"]["value"], "{:.0f}"),
            *(_plain(row[key]["value"], "{:.1f}", 100) for key in ("wasted", "drafting")),
            str(row["failed"] + row["diverged"] or "–"),
        )
    return table


def _order(change: float | None) -> float:
    return 0.0 if change is None or change != change else change


def _faults(found: Mapping[str, Any]) -> list[Table]:
    """Change of the final loss to doing nothing, a column a fault, as many as fit beside one another."""
    rows = [row for row in found["methods"] if not row["hindsight"] and row["cells"]]
    faults = list(
        dict.fromkeys(
            row["group"] for row in rows if row["group"] not in ("all", "calm", "stressed")
        )
    )
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "nothing"))
    by = {(row["group"], row["method"]): row["against_nothing"] for row in rows}
    tables = []
    for part in (faults[at : at + _ABREAST] for at in range(0, len(faults), _ABREAST)):
        table = _table("Change of the final loss to doing nothing, %", "method", *part)
        for method in methods:
            known = (by.get((fault, method)) for fault in part)
            table.add_row(
                method,
                *(_plain(_percent(one)["value"], "{:+.1f}") if one else "–" for one in known),
            )
        tables.append(table)
    return tables


def _decisions(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "Decisions",
        "trunks",
        "method",
        "a 1000 steps",
        "accepted %",
        "gap",
        "coverage %",
        "steps each",
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


def _goals(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Goals", "what", "goal", "measured", "met")
    for row in rows:
        low, high = row["interval"] or (None, None)
        measured = _with_interval({"value": row["measured"], "low": low, "high": high}, "{:.4f}")
        table.add_row(row["what"], row["goal"], measured, "yes" if row["met"] else "NO")
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
    return "–" if value is None or value != value else form.format(factor * value)


def _percent(figure: Mapping[str, Any]) -> dict[str, Any]:
    """A difference of ln losses as one of losses, in percent."""
    return {
        key: None if figure[key] is None else 100 * math.expm1(figure[key])
        for key in ("value", "low", "high")
    }


def _with_interval(figure: Mapping[str, Any], form: str) -> str:
    value, low, high = (_plain(figure[key], form) for key in ("value", "low", "high"))
    return value if low == "–" else f"{value} [{low}, {high}]"
