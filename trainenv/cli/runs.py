"""`trainenv runs`: list the runs in a folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import Result, add_command, as_path
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.records.run_list import RunStatus


def add_runs(commands: Any) -> None:
    """Add the command."""
    runs = add_command(
        commands,
        "runs",
        runs_command,
        "List the runs in a folder: state, step, loss, steering and size.",
    )
    runs.add_argument(
        "folder",
        nargs="?",
        type=as_path,
        default=Path("runs"),
        metavar="FOLDER",
        help="folder to search (default: %(default)s)",
    )


def runs_command(args: argparse.Namespace) -> Result:
    """Print a table of the runs in a folder and below it."""
    from rich.console import Console

    from trainenv.records.run_list import list_runs

    if not args.folder.is_dir():
        raise UserError(
            f"expected a folder of runs at {args.folder}, found none; give the folder that holds"
            " yours, or start one with: trainenv run tiny"
        )
    found = list_runs(args.folder)
    if not args.json:
        console = Console(highlight=False)
        if found:
            console.print(_table(found))
        for sentence in _sentences(found, args.folder):
            console.print(sentence, soft_wrap=True, markup=False)
    return {"command": "runs", "runs": [run.to_json() for run in found]}, 0


def _table(found: list[RunStatus]) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    from trainenv.tools.sizes import size_in_words

    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1))
    for name in ("folder", "state", "steered"):
        table.add_column(name, overflow="fold")
    for name in ("step", "loss", "on disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in found:
        steered = run.steered or "no"
        if run.parent:
            steered += f", from {run.parent.removeprefix(f'{Path.cwd()}/')}"
        cells = (
            str(run.folder),
            run.state,
            steered,
            f"{_number(run.step)} of {_number(run.steps)}",
            _number(run.loss),
            size_in_words(run.bytes),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _sentences(found: list[RunStatus], folder: Path) -> list[str]:
    """Return what can be done next."""
    from trainenv.report.drawing.formatting import counted
    from trainenv.tools.paths import typed

    if not found:
        return [f"no runs in {folder}; start one with: trainenv run tiny"]
    stopped = next((run for run in found if run.state == "interrupted"), None)
    sentences = [counted(len(found), "run")]
    if stopped is not None:
        sentences.append(f"resume with: trainenv run --resume --out {typed(stopped.folder)}")
    return sentences


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}"
