"""`trainenv decode tune`: search for the fastest settings of one pair on one corpus."""

from __future__ import annotations

import argparse
from typing import Any

from trainenv.cli.decode.options import add_out, add_plan, plan_of
from trainenv.cli.options import INTERRUPTED, Result, add_command, as_path, interruptible


def add_tune(actions: Any) -> None:
    """Add the action."""
    tuning = add_command(
        actions,
        "tune",
        tune_command,
        "Search for the fastest settings of one pair on one corpus; resumable.",
    )
    tuning.add_argument(
        "folder", type=as_path, metavar="FOLDER", help="folder with traces and costs"
    )
    tuning.add_argument("--pair", required=True, metavar="NAME", help="name of the model pair")
    tuning.add_argument("--corpus", required=True, metavar="NAME", help="name of the corpus")
    tuning.add_argument(
        "--method",
        default=None,
        metavar="NAME",
        help="method of the search: grid, random, cma-es, ucb, tpe or ppo (default: ucb)",
    )
    tuning.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)"
    )
    add_plan(tuning)
    add_out(tuning, "runs/decode-tune")


def tune_command(args: argparse.Namespace) -> Result:
    """Search for settings, and write the report."""
    from trainenv.agents.thresholds.sources import read_sources
    from trainenv.agents.thresholds.tuning import DEFAULT, Tuning
    from trainenv.cli.progress import ProgressLine
    from trainenv.report import write_report

    search = Tuning(method=args.method or DEFAULT, seed=args.seed, plan=plan_of(args, seeds=1))
    source = read_sources(args.folder, pairs=[args.pair], corpora=[args.corpus])[0]
    with (
        interruptible() as stop,
        ProgressLine("tune", args.budget, quiet=args.json) as screen,
    ):

        def show(done: int, best: float) -> None:
            note = f"best {best:.3f} × as fast"
            screen.update(done, args.budget, note=note, line=f"{done} evaluations, {note}")

        found = search.run(source, args.out, progress=show, stop=stop)
        report = write_report(args.out)
        screen.say(source.name)
        screen.say(found["summary"])
        screen.say(f"report: {report}")
        if not found["finished"]:
            screen.say("interrupted; resume with the same command")
    shown = {key: found[key] for key in found if key not in ("tasks", "methods", "rows")}
    result = {"command": "decode tune", "folder": str(args.out), "report": str(report), **shown}
    if not found["finished"]:
        return result, INTERRUPTED
    return result, 0
