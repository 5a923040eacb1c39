"""Progress of a command for people: one line that is updated, or a line now and then in a log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
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
    "test_loss": "test loss",
    "fired": "alarms",
    "rewinds": "rewinds",
    "wasted": "wasted",
    "ms_per_step": "ms/step",
}
_TEXTS = ("method", "ended")  # columns that are no numbers


class ProgressLine:
    """A progress line on stderr; sentences on stdout.

    Args:
        title: Name of the work.
        total: Number of steps or cells in it.
        quiet: True to print nothing on stdout, which is kept for JSON.
        times: Columns between the bar and the note.
        lines: Number of lines in all where stderr is a file or a pipe.
        width: Width of stdout in characters; None for that of the terminal.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        quiet: bool,
        times: Sequence[ProgressColumn] = (),
        lines: int = 10,
        width: int | None = None,
    ) -> None:
        self.out = Console(quiet=quiet, highlight=False, width=width)
        self.err = Console(stderr=True, highlight=False)
        self.title = title
        self._bar = Bar(
            TextColumn("{task.description:>11}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            *times,
            TextColumn("{task.fields[note]}"),
            console=self.err,
            disable=not self.err.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, note="")
        self._lines = lines
        self._printed = 0
        self._cell: Any = None  # output of a notebook that is updated in place

    def __enter__(self) -> Self:
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

    def say(self, sentence: str) -> None:
        """Print a sentence on stdout."""
        self.out.print(sentence, soft_wrap=True, markup=False)

    def update(self, done: int, total: int, *, note: str, line: str) -> None:
        """Show how much is done.

        Args:
            done: Number of steps or cells that are done.
            total: Number of them in all.
            note: Words next to the bar.
            line: Line for a file or a pipe, printed once in each of `lines` equal parts.
        """
        self._bar.update(self._task, completed=done, total=total, note=note)
        if self.err.is_jupyter:
            self._show_in_notebook(f"{self.title}: {line}")
            return
        part = self._lines * done // max(total, 1)
        if not self.err.is_terminal and part > self._printed:
            self.err.print(f"{self.title}: {line}", markup=False)
            self._printed = part

    def _show_in_notebook(self, text: str) -> None:
        """Update one line of output in place."""
        from IPython.display import display

        shown = {"text/plain": text}
        if self._cell is None:
            self._cell = display(shown, raw=True, display_id=True)
        else:
            self._cell.update(shown, raw=True)


def progress() -> Callable[[Run, Sequence[Telemetry]], None]:
    """Return a function for `train(…, watch=…)` that shows how far a run is.

    In a notebook it updates one line below the cell, in a terminal a progress bar; in a file or a
    pipe it prints a line now and then.

        trainenv.train(run, "runs/mine", watch=trainenv.progress())
    """
    shown: dict[int, Progress] = {}

    def watch(run: Run, window: Sequence[Telemetry]) -> None:
        if id(run) not in shown:
            shown[id(run)] = Progress(run.config.name, run.config.steps, quiet=True)
            shown[id(run)].__enter__()
        shown[id(run)].watch(run, window)
        if run.done or run.diverged:
            shown.pop(id(run)).__exit__(None, None, None)

    return watch


class Progress(ProgressLine):
    """Progress of a run.

    Args:
        title: Name of the run.
        total: Optimizer steps in the budget.
        quiet: True to print nothing on stdout, which is kept for JSON.
    """

    def __init__(self, title: str, total: int, *, quiet: bool) -> None:
        super().__init__(title, total, quiet=quiet, times=[TimeRemainingColumn()])

    def watch(self, run: Run, window: Sequence[Telemetry]) -> None:
        """Show the step, the loss and the uncertainty index after a block of telemetry."""
        last = window[-1]
        note = f"loss {last.loss:.3f}  index {last.reading.index:4.1f}"
        if any(telemetry.reading.fired for telemetry in window):
            note += "  ALARM"
        total = max(run.horizon.end, run.step)
        self.update(run.step, total, note=note, line=f"step {run.step} of {total}, {note}")

    def table(self, title: str, summaries: Sequence[Mapping[str, Any]]) -> None:
        """Print summaries of `train` as a table, one row each."""
        rows = [{**summary, "wasted": _wasted(summary["flops"])} for summary in summaries]
        shown = [key for key in _COLUMNS if any(key in row for row in rows)]
        if all(row["ended"] == "budget spent" for row in rows):
            shown.remove("ended")  # as expected
        table = Table(title=title, title_justify="left", title_style="bold")
        for key in shown:
            table.add_column(_COLUMNS[key], no_wrap=True)
            if key not in _TEXTS:
                table.columns[-1].justify = "right"
        for row in rows:
            table.add_row(*(_cell(row.get(key)) for key in shown))
        self.out.print(table)


def _wasted(flops: Mapping[str, float]) -> str:
    """Return the share of all compute that was wasted, in percent."""
    from trainenv.training.ledger import wasted_share

    share = wasted_share(flops)
    if math.isnan(share):
        return "–"
    return f"{100 * share:.1f} %"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
