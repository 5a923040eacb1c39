"""`trainenv report`: what became of a run, or of a comparison, as one HTML file and in the terminal."""

from __future__ import annotations

import argparse
from typing import Any

from trainenv.cli.options import Result
from trainenv.tools.paths import typed
from trainenv.types import UserError


def report_command(args: argparse.Namespace) -> Result:
    """Write the page, and print the tree or the tables."""
    from rich.console import Console

    from trainenv.report import write_report
    from trainenv.report.comparison.comparison_record import is_comparison, read_comparison
    from trainenv.report.comparison.comparison_text import comparison_text
    from trainenv.report.run.run_report import RunReport
    from trainenv.trackers.tensorboard import write_tensorboard

    console = Console(quiet=args.json, highlight=False)
    result: dict[str, Any] = {"command": "report", "folder": str(args.folder)}
    if is_comparison(args.folder):
        if args.tensorboard:
            raise UserError(
                f"--tensorboard takes the folder of a run, found a comparison in {args.folder}; give one of its runs"
            )
        comparison = read_comparison(args.folder)
        path = write_report(args.folder, args.out)
        console.print(comparison_text(comparison))
        result |= {
            "kind": "comparison",
            "cells": comparison.found["cells"],
            "goals": comparison.found["goals"],
        }
    else:
        report = RunReport(args.folder)
        path = report.html(args.out)
        console.print(report)
        result |= {
            "kind": "run",
            "decisions": len(report.record.decisions),
            "summary": report.summary,
        }
        if args.tensorboard:
            scalars = write_tensorboard(args.folder, args.tensorboard)
            result |= {"tensorboard": str(args.tensorboard), "scalars": scalars}
            console.print(
                f"for TensorBoard: tensorboard --logdir {typed(args.tensorboard)}",
                markup=False,
                soft_wrap=True,
            )
    console.print(f"report: {path}", markup=False, soft_wrap=True)
    return {**result, "report": str(path), "bytes": path.stat().st_size}, 0
