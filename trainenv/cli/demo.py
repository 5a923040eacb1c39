"""`trainenv demo`: the whole loop on a tiny run under stressors, beside the same budget left alone, with a report."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import INTERRUPTED, Result, interruptible
from trainenv.tools.paths import typed
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.config.schema import RunConfig
    from trainenv.run import TrainingRun

_METHODS = ("left alone", "branching")


def demo_command(args: argparse.Namespace) -> Result:
    """Train twice with one budget: left alone, and steered; both from the same start, on the same data."""
    from trainenv.cli.progress import Progress
    from trainenv.records.run_folder import RunFolder
    from trainenv.report import write_report
    from trainenv.report.run.run_report import RunReport
    from trainenv.run import TrainingRun

    config = _config(args)
    run = TrainingRun.from_config(config)  # before anything is written: it may not fit
    start = run.snapshot()
    root = RunFolder(args.out) if args.resume else RunFolder.create(args.out, config)
    summaries: list[dict[str, Any]] = []
    with interruptible() as stop:
        for method in _METHODS:
            run.restore(start)
            run.ledger.load({})
            summaries.append({**_played(method, root.path, run, stop, args), "method": method})
            if stop():
                break
    progress = Progress("demo", 1, quiet=args.json)
    progress.table("The same budget, left alone and steered", summaries)
    result: dict[str, Any] = {"command": "demo", "folder": str(root.path), "runs": summaries}
    if stop():
        progress.say(f"interrupted; go on with: trainenv demo --resume --out {typed(root.path)}")
        return result, INTERRUPTED
    steered = root.path / _METHODS[-1]
    progress.say(RunReport(steered).tree())
    result["report"] = str(write_report(steered, root.path / "report.html"))
    progress.say(f"report: {result['report']}")
    root.finish(result)
    return result, 0


def _played(
    method: str, root: Path, run: TrainingRun, stop: Callable[[], bool], args: argparse.Namespace
) -> dict[str, Any]:
    """The summary of one of the two, trained now, or to its end, or before."""
    from trainenv.checkpoints import FOLDER
    from trainenv.checkpoints.store import CheckpointStore
    from trainenv.cli.progress import Progress
    from trainenv.composition.default_loop import branching
    from trainenv.loop import resume, train
    from trainenv.records.run_folder import RunFolder

    path = root / method.replace(" ", "-")
    if (path / "summary.json").is_file():
        ended: dict[str, Any] = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        return ended
    callback = branching() if method == "branching" else None
    if path.is_dir() and CheckpointStore(path / FOLDER).steps():
        folder, _ = resume(path, run, callback, accept_changes=args.accept_changes)
    else:  # what was stopped before its first checkpoint had not begun
        shutil.rmtree(path, ignore_errors=True)
        folder = RunFolder.create(path, run.config)
    with Progress(method, run.config.steps, quiet=args.json) as progress:
        if callback is not None:
            cost_estimate = callback.cost_estimate(run)
            progress.say(str(cost_estimate))
            progress.say(cost_estimate.affords)
        return train(run, folder, callback=callback, watch=progress.watch, stop=stop)


def _config(args: argparse.Namespace) -> RunConfig:
    """The demo's configuration, or that of the one to be gone on with.

    Raises:
        UserError: there is nothing to go on with.
    """
    from trainenv.config.schema import RunConfig

    if not args.resume:
        return RunConfig.load("demo", {} if args.steps is None else {"steps": args.steps})
    if args.out is None or args.steps is not None:
        raise UserError("--resume goes on with a demo as it was: give --out FOLDER, and no --steps")
    if (args.out / "summary.json").is_file() or not (args.out / "config.yaml").is_file():
        raise UserError(
            f"expected an interrupted demo in {args.out}, found none; leave out --resume to start one"
        )
    return RunConfig.load(args.out / "config.yaml")
