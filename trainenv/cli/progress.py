"""What a person sees while a command works: a live line with the time left, or a line every tenth where nobody watches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from trainenv.types import Telemetry

if TYPE_CHECKING:
    from trainenv.types import Run

_COLUMNS = {
    "method": "method",
    "ended": "ended",
    "step": "steps",
    "final_validation_loss": "val. loss",
    "fired": "alarms",
    "rewinds": "rewinds",
    "wasted": "wasted",
    "ms_per_step": "ms/step",
}


class Progress:
    """A progress line on stderr; tables and sentences on stdout. Quiet says nothing on stdout.

    Args:
        title: what is going on.
        total: optimizer steps in the budget.
        quiet: whether stdout is kept for JSON.
    """

    def __init__(self, title: str, total: int, *, quiet: bool) -> None:
        self._out = Console(quiet=quiet, highlight=False)
        self._err = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description:>11}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Bar(
            *columns,
            TextColumn("{task.fields[note]}"),
            console=self._err,
            disable=not self._err.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, note="")
        self._title = title
        self._total = total
        self._tenth = 0

    def __enter__(self) -> Progress:
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

    def watch(self, run: Run, window: Sequence[Telemetry]) -> None:
        """Show where the run is, after a block of telemetry."""
        last = window[-1]
        total = max(run.horizon.end, run.step)
        note = f"loss {last.loss:.3f}  index {last.reading.index:4.1f}{'  ALARM' if any(t.reading.fired for t in window) else ''}"
        self._bar.update(self._task, completed=run.step, total=total, note=note)
        tenth = 10 * run.step // max(total, 1)
        if not self._err.is_terminal and tenth > self._tenth:
            self._err.print(f"{self._title}: step {run.step} of {total}, {note}", markup=False)
            self._tenth = tenth

    def say(self, sentence: str) -> None:
        self._out.print(sentence, soft_wrap=True, markup=False)

    def table(self, title: str, summaries: Sequence[Mapping[str, Any]]) -> None:
        """Summaries as `train` returns them, a row each."""
        rows = [{**summary, "wasted": _wasted(summary["flops"])} for summary in summaries]
        shown = [key for key in _COLUMNS if any(key in row for row in rows)]
        if all(row["ended"] == "budget spent" for row in rows):
            shown.remove("ended")  # nothing to tell
        table = Table(title=title, title_justify="left", title_style="bold")
        for key in shown:
            table.add_column(
                _COLUMNS[key],
                no_wrap=True,
                justify="left" if key in ("method", "ended") else "right",
            )
        for row in rows:
            table.add_row(*(_cell(row.get(key)) for key in shown))
        self._out.print(table)


def _wasted(flops: Mapping[str, float]) -> str:
    """Compute that was rewound or went into branches, as a share of all of it."""
    total = sum(flops.values())
    return f"{100 * (flops['rewound'] + flops['verify']) / total:.1f} %" if total else "–"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
