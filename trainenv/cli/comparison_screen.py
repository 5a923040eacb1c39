"""Screen of a comparison: a progress line while it works, tables at its end."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from trainenv.cli.progress import ProgressLine
from trainenv.compare.runner import Progress

_LINES = 20  # of progress in a file or a pipe
_WIDEST = 1000  # characters of a table there, where no window cuts it
_MET = {True: "yes", False: "NO", None: "needs 2 or more seeds"}
_FAILURES = 10  # kinds of failures that are listed one by one
_WRAPPED = 30  # characters of a column that may take several lines
_NARROWEST = 60  # columns of a window; in a narrower one a table is a list
# Columns of the table of methods that a narrow window leaves out, the first one first.
_LESS_WANTED = (
    "draft %",
    "heals in",
    "events",
    "waste %",
    "regret %",
    "closed %",
    "lost",
    "branching",
    "loss",
)


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
                self._print(_methods_table(f"{group.capitalize()} scenarios ({scenarios})", rows))
        if found["rows"] and any(scenario["fault"] for scenario in found["scenarios"].values()):
            self._print(_fault_table(found))
        if rows := [row for row in found["decisions"] if row["group"] in ("stressed", "calm")]:
            self._print(_decisions_table(rows))
        if rows := [goal for goal in found["goals"] if goal["measured"] is not None]:
            self._print(_goals_table(rows))
        settings = ", ".join(f"{best['scenario']}: {best['method']}" for best in found["hindsight"])
        if settings:
            self.say(f"Best static setting in hindsight (regret is against it): {settings}.")
        if found["headroom"]["references"]:
            self._print(_headroom_table(found["headroom"]["groups"]))
        self.say(counts(found))

    def _print(self, grid: Grid) -> None:
        """Print a table in as many columns as fit, or a list in a narrow window."""
        if self.out.width < _NARROWEST:
            self.say(grid.as_list())
            return
        left_out = list[str]()
        unbounded = self.out.options.update(width=_WIDEST)
        while (
            self.out.measure(grid.table(), options=unbounded).maximum > self.out.width
            and len(grid.names) > 2
        ):
            grid, name = grid.narrower()
            left_out.append(name)
        self.out.print(grid.table())
        if left_out:
            self.say(
                f"Left out for want of width: {', '.join(left_out)}; results.json has all of it.\n"
            )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table before it is fitted into a window.

    Attributes:
        title: Title.
        names: Names of the columns; the first one is never left out.
        rows: Cells of each row, as many as there are columns.
        less_wanted: Names of the columns that are left out first, in this order; then it is the
            last column's turn.
        wraps: True if the first column may take several lines.
    """

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    less_wanted: Sequence[str] = ()
    wraps: bool = False

    def narrower(self) -> tuple[Grid, str]:
        """Return the table without one column, and the name of that column."""
        name = next((name for name in self.less_wanted if name in self.names), self.names[-1])
        place = list(self.names).index(name)
        rows = [[*row[:place], *row[place + 1 :]] for row in self.rows]
        names = [*self.names[:place], *self.names[place + 1 :]]
        return replace(self, names=names, rows=rows), name

    def table(self) -> Table:
        """Return the table, in which no number is cut or wrapped."""
        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            box=SIMPLE,
            padding=(0, 1),
            pad_edge=False,
        )
        table.add_column(
            self.names[0],
            no_wrap=not self.wraps,
            max_width=_WRAPPED if self.wraps else None,
        )
        for name in self.names[1:]:
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def as_list(self) -> str:
        """Return the table as lines, one value each."""
        lines = [f"{self.title}:"]
        for row in self.rows:
            lines.append(f"  {row[0]}")
            lines += [f"    {name}: {cell}" for name, cell in zip(self.names[1:], row[1:])]
        return "\n".join(lines)


def counts(found: Mapping[str, Any]) -> str:
    """Describe how many cells there are, how many diverged, and which failed."""
    cells = found["cells"]
    failed = found["failed"]
    lines = [
        f"{cells['there']} of {cells['wanted']} cells, {cells['diverged']} diverged,"
        f" {cells['failed']} failed."
    ]
    kinds: dict[tuple[str, str], list[str]] = {}
    for cell in failed:
        place = f"{cell['scenario']}, seed {cell['seed']}"
        kinds.setdefault((cell["method"], cell["error"]), []).append(place)
    for (method, error), places in list(kinds.items())[:_FAILURES]:
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        lines.append(f"  {method} on {places[0]}{more}: {error}")
        lines.append(f"    → {remedy(error)}")
    if len(kinds) > _FAILURES:
        lines.append(f"  and {len(kinds) - _FAILURES} other kinds of failures, see results.json")
    if failed:
        lines.append(
            "Failed cells count as done; to train one again, delete its file in the folder cells."
        )
    return "\n".join(lines)


def remedy(error: str) -> str:
    """Return what to do about a cell that failed with a reason."""
    known = {
        "not at equal compute": "charge what the method evaluates in addition by run.spend(steps)",
        "expected a final": "let the method return the summary of trainenv.train",
        "expected the measures": "return a value for each key of trainenv.compare.cells.MEASURED",
        "pip install": "install the package in the environment of this command",
        "MemoryError": "give --workers 1, or a smaller scenario",
        "process": "the process was ended from outside, often for want of memory: give --workers 1",
    }
    for words, answer in known.items():
        if words in error:
            return answer
    return "train it alone to see more: the same command with --workers 0, --methods, --scenarios"


def minutes(seconds: float) -> str:
    """Describe a duration in minutes or hours."""
    if seconds < 50:
        return "a minute"
    if seconds < 7200:
        return f"{max(2, math.ceil(seconds / 60))} minutes"
    return f"{seconds / 3600:.1f} hours"


def _methods_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Make a table of the methods, the best first.

    `change %` compares a method's final loss with that of doing nothing; `branching` compares the
    loop with the method; `closed %` is the share of the headroom that the method closes.
    """
    names = (
        *("method", "change %", "branching", "loss", "regret %", "closed %", "events"),
        *("heals in", "waste %", "draft %", "lost"),
    )
    cells = [
        (
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
        for row in sorted(rows, key=lambda row: _order(row["against_nothing"]["value"]))
    ]
    return Grid(
        title=f"{title}: change of the final loss against doing nothing [95 % interval],"
        " and of branching against the method",
        names=names,
        rows=cells,
        less_wanted=_LESS_WANTED,
    )


def _order(change: float | None) -> float:
    """Return the place of a change in the order of methods; one that is not known counts as 0."""
    if change is None or math.isnan(change):
        return 0.0
    return change


def _fault_table(found: Mapping[str, Any]) -> Grid:
    """Make a table of the change against doing nothing with one column per fault."""
    rows = [row for row in found["methods"] if not row["hindsight"] and row["cells"]]
    faults = list(
        dict.fromkeys(
            row["group"] for row in rows if row["group"] not in ("all", "calm", "stressed")
        )
    )
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "nothing"))
    by = {(row["group"], row["method"]): row["against_nothing"] for row in rows}
    unknown = {"value": None, "low": None, "high": None}
    cells = []
    for method in methods:
        changes = (_percent(by.get((fault, method), unknown)) for fault in faults)
        cells.append((method, *(_plain(change["value"], "{:+.1f}") for change in changes)))
    return Grid(
        title="Change of the final loss against doing nothing, %",
        names=("method", *faults),
        rows=cells,
    )


def _decisions_table(rows: Sequence[Mapping[str, Any]]) -> Grid:
    cells = [
        (
            f"{row['method']}, {row['group']}",
            _plain(row["invoked"]["value"], "{:.1f}"),
            _plain(row["accepted"]["value"], "{:.0f}", 100),
            _plain(row["gap"]["value"], "{:.4f}"),
            _plain(row["coverage"]["value"], "{:.0f}", 100),
            _plain(row["verify_steps"]["value"], "{:.0f}"),
            _plain(row["verify_cost"]["value"], "{:.1f}", 100),
        )
        for row in rows
    ]
    return Grid(
        title="Decisions",
        names=(
            *("method, scenarios", "per 1000 steps", "accepted %", "gap", "coverage %"),
            *("steps per branch", "cost %"),
        ),
        rows=cells,
    )


def _headroom_table(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Make a table of the gains of open-loop references, by group."""
    keys = ("honest_gain", "bound_gain")
    cells = [(row["group"], *(_with_interval(row[key], "{:+.4f}") for key in keys)) for row in rows]
    return Grid(
        title="Headroom: gain of the best open-loop setting in ln final loss [95 % interval]",
        names=("scenarios", "chosen on other seeds", "on the same seed"),
        rows=cells,
    )


def _goals_table(rows: Sequence[Mapping[str, Any]]) -> Grid:
    cells = []
    for row in rows:
        low, high = row["interval"] or (None, None)
        measured = _with_interval({"value": row["measured"], "low": low, "high": high}, "{:.4f}")
        cells.append((row["what"], row["goal"], measured, _MET[row["met"]]))
    names = ("what", "goal", "measured", "met")
    return Grid(title="Goals", names=names, rows=cells, less_wanted=("goal",), wraps=True)


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
