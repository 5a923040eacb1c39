"""`trainenv demo`."""

from __future__ import annotations

import argparse

from trainenv.cli.asking import INTERRUPTED, Result, interruptible


def demo_command(args: argparse.Namespace) -> Result:
    """Run it."""
    from agents.by_hand import ByHand
    from trainenv.config import RunConfig
    from trainenv.driving import drive
    from trainenv.progress import Progress
    from trainenv.records.folder import RunFolder
    from trainenv.records.plot import plot_run
    from trainenv.run import TrainingRun

    config = RunConfig.load("demo", {} if args.steps is None else {"steps": args.steps})
    run = TrainingRun.from_config(config)
    start, root = run.snapshot(), RunFolder.create(args.out, config)
    methods = {"left alone": None, "by hand": ByHand()}
    summaries = []
    with interruptible() as stop:
        for name, responder in methods.items():
            run.restore(start)
            run.ledger.load({})
            folder = RunFolder.create(root.path / name.replace(" ", "-"), config)
            with Progress(name, config.steps, quiet=args.json) as progress:
                summary = drive(run, folder, responder=responder, watch=progress.watch, stop=stop)
            summary["method"] = name
            summary["plot"] = str(plot_run(folder.path, folder.path / "run.png"))
            summaries.append(summary)
            if stop():
                break
    progress.table("The same budget, left alone and by hand", summaries)
    for summary in summaries:
        progress.say(f"{summary['method']:>10}: {summary['plot']}")
    result = {"command": "demo", "folder": str(root.path), "runs": summaries}
    if not stop():
        root.finish(result)
    return result, INTERRUPTED if stop() else 0
