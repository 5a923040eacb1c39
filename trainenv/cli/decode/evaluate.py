"""`trainenv decode evaluate`: compare all methods on what was held out."""

from __future__ import annotations

import argparse
from typing import Any

from trainenv.cli.decode.options import add_out, add_plan, plan_of
from trainenv.cli.options import INTERRUPTED, Result, add_command, as_path, interruptible

_COLUMNS = ("regret", "speedup", "acceptance", "distance", "evaluations")


def add_evaluate(actions: Any) -> None:
    """Add the action."""
    evaluating = add_command(
        actions,
        "evaluate",
        evaluate_command,
        "Compare all methods on texts, pairs and corpora that were held out; resumable.",
    )
    evaluating.add_argument(
        "folder", type=as_path, metavar="FOLDER", help="folder with traces and costs"
    )
    evaluating.add_argument(
        "--methods", metavar="A,B", help="methods without training over pairs (default: all)"
    )
    evaluating.add_argument(
        "--general", metavar="A,B", help="policies trained over pairs (default: all)"
    )
    evaluating.add_argument(
        "--clocks",
        default="measured",
        metavar="A,B",
        help="clocks of each task: measured, or the share of a target call that a draft step"
        " costs, such as 0.1 (default: %(default)s)",
    )
    evaluating.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="number of splits of the texts (default: %(default)s)",
    )
    add_plan(evaluating)
    add_out(evaluating, "runs/decode-evaluate")


def evaluate_command(args: argparse.Namespace) -> Result:
    """Compare methods, show a table, and write the report."""
    from trainenv.agents.thresholds.evaluation import evaluate
    from trainenv.agents.thresholds.sources import read_sources, with_clocks
    from trainenv.cli.progress import ProgressLine
    from trainenv.report import write_report
    from trainenv.report.decoding import DECODING
    from trainenv.tools.atomic_files import write_json

    plan = plan_of(args, seeds=args.seeds)
    sources = with_clocks(read_sources(args.folder), args.clocks.split(","))
    with interruptible() as stop, ProgressLine("evaluate", 1, quiet=args.json) as screen:

        def show(done: int, total: int, name: str) -> None:
            screen.update(done, total, note=name, line=f"{done} of {total}, {name}")

        found = evaluate(sources, plan, args.out, progress=show, stop=stop)
        write_json(args.out / DECODING, found)
        report = write_report(args.out)
        screen.out.print(_table(found))
        screen.say(f"report: {report}")
        if not found["finished"]:
            screen.say("interrupted; resume with the same command")
    result = {
        "command": "decode evaluate",
        "folder": str(args.out),
        "report": str(report),
        "finished": found["finished"],
        "methods": found["methods"],
    }
    if not found["finished"]:
        return result, INTERRUPTED
    return result, 0


def _table(found: dict[str, Any]) -> Any:
    """Return the table of the methods, the least regret first."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(
        title="means over pairs, corpora and seeds", title_justify="left", box=SIMPLE, padding=0
    )
    table.add_column("method", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for one in sorted(found["methods"], key=lambda one: float(one["regret"]["value"])):
        table.add_row(one["method"], *(f"{one[name]['value']:.3f}" for name in _COLUMNS))
    return table
