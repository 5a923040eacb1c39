"""`trainenv report`: write a run, a comparison, weightings or thresholds as one HTML file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import Result, add_command, as_path
from trainenv.tools.paths import typed
from trainenv.types import UserError

if TYPE_CHECKING:
    from rich.console import Console


def add_report(commands: Any) -> None:
    """Add the command."""
    report = add_command(
        commands,
        "report",
        report_command,
        "Write a run, a comparison, weightings or decoding thresholds as one HTML file.",
    )
    report.add_argument(
        "folder",
        type=as_path,
        metavar="FOLDER",
        help="folder of a run, of a comparison, of trainenv wmtp compare or of trainenv decode",
    )
    report.add_argument(
        "--out",
        type=as_path,
        metavar="FILE",
        help="HTML file to write (default: report.html in the folder)",
    )
    report.add_argument(
        "--tensorboard",
        type=as_path,
        metavar="DIR",
        help="folder for TensorBoard files of the run (default: none are written)",
    )


def report_command(args: argparse.Namespace) -> Result:
    """Write the HTML file, and print the tree of a run or the tables of a comparison."""
    from rich.console import Console

    from trainenv.report.comparison.comparison_record import is_comparison
    from trainenv.report.decoding import is_decoding
    from trainenv.report.wmtp import is_wmtp

    console = Console(quiet=args.json, highlight=False)
    if is_wmtp(args.folder):
        found = _report_other(args, "weightings")
    elif is_comparison(args.folder):
        found = _report_comparison(args, console)
    elif is_decoding(args.folder):
        found = _report_other(args, "decoding")
    else:
        found = _report_run(args, console)
    written = found["report"]
    console.print(f"report: {written}", markup=False, soft_wrap=True)
    return {
        "command": "report",
        "folder": str(args.folder),
        **found,
        "report": str(written),
        "bytes": written.stat().st_size,
    }, 0


def _report_comparison(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    from trainenv.report import write_report
    from trainenv.report.comparison.comparison_record import read_comparison
    from trainenv.report.comparison.comparison_text import comparison_text

    if args.tensorboard:
        raise UserError(
            f"--tensorboard takes the folder of a run, found a comparison in {args.folder}; give"
            " one of its runs"
        )
    comparison = read_comparison(args.folder)
    written = write_report(args.folder, args.out)
    console.print(comparison_text(comparison))
    return {
        "kind": "comparison",
        "cells": comparison.found["cells"],
        "goals": comparison.found["goals"],
        "report": written,
    }


def _report_other(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Write a page that has no tree and no scalars."""
    from trainenv.report import write_report

    if args.tensorboard:
        raise UserError(
            f"--tensorboard takes the folder of a run, found that of {kind} in {args.folder}; "
            "leave it out"
        )
    return {"kind": kind, "report": write_report(args.folder, args.out)}


def _report_run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    from trainenv.report.run.run_report import RunReport
    from trainenv.trackers.tensorboard import write_tensorboard

    report = RunReport(args.folder)
    written = report.html(args.out)
    console.print(report)
    found: dict[str, Any] = {
        "kind": "run",
        "decisions": len(report.record.decisions),
        "summary": report.summary,
        "report": written,
    }
    if args.tensorboard:
        scalars = write_tensorboard(args.folder, args.tensorboard)
        found |= {"tensorboard": str(args.tensorboard), "scalars": scalars}
        console.print(
            f"for TensorBoard: tensorboard --logdir {typed(args.tensorboard)}",
            markup=False,
            soft_wrap=True,
        )
    return found
