"""`trainenv demo`: a tiny run under stressors, once left alone and once steered, with a report."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import INTERRUPTED, Result, add_command, as_path, interruptible
from trainenv.tools.paths import typed
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.config.schema import RunConfig
    from trainenv.records.run_folder import RunFolder
    from trainenv.run import TrainingRun

_METHODS = ("left alone", "branching")


def add_demo(commands: Any) -> None:
    """Add the command."""
    demo = add_command(
        commands,
        "demo",
        demo_command,
        "Train a tiny run under stressors twice, left alone and steered, and write a report.",
    )
    demo.add_argument(
        "--out", type=as_path, metavar="FOLDER", help="folder of the records (default: runs/demo)"
    )
    demo.add_argument("--resume", action="store_true", help="resume the interrupted demo in --out")
    demo.add_argument(
        "--accept-changes",
        action="store_true",
        help="with --resume: resume even if text or configuration have changed",
    )
    demo.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="budget in optimizer steps (default: that of the preset demo)",
    )


def demo_command(args: argparse.Namespace) -> Result:
    """Train twice from one start with one budget, on the same data: left alone, then steered."""
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
            summaries.append({**_train(method, root.path, run, stop, args), "method": method})
            if stop():
                break
    progress = Progress("demo", 1, quiet=args.json)
    progress.table("The same budget, left alone and steered", summaries)
    result: dict[str, Any] = {"command": "demo", "folder": str(root.path), "runs": summaries}
    if stop():
        progress.say(f"interrupted; resume with: trainenv demo --resume --out {typed(root.path)}")
        return result, INTERRUPTED
    steered = root.path / _METHODS[-1]
    progress.say(RunReport(steered).tree())
    result["report"] = str(write_report(steered, root.path / "report.html"))
    progress.say(f"report: {result['report']}")
    root.finish(result)
    return result, 0


def _train(
    method: str, root: Path, run: TrainingRun, stop: Callable[[], bool], args: argparse.Namespace
) -> dict[str, Any]:
    """Train one of the two runs, or resume it; return its summary, also if it has ended before."""
    from trainenv.cli.progress import Progress
    from trainenv.composition.default_loop import branching
    from trainenv.composition.tracked import train

    folder = root / method.replace(" ", "-")
    if (folder / "summary.json").is_file():
        ended: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return ended
    callback = None
    if method == "branching":
        callback = branching()
    record = _open_folder(folder, run, callback, args)
    with Progress(method, run.config.steps, quiet=args.json) as progress:
        if callback is not None:
            cost_estimate = callback.cost_estimate(run)
            progress.say(str(cost_estimate))
            progress.say(cost_estimate.affords)
        return train(run, record, callback=callback, watch=progress.watch, stop=stop)


def _open_folder(
    folder: Path, run: TrainingRun, callback: Any, args: argparse.Namespace
) -> RunFolder:
    """Resume the run from its newest checkpoint; without one, start a new folder."""
    from trainenv.checkpoints import FOLDER
    from trainenv.checkpoints.store import CheckpointStore
    from trainenv.loop import resume
    from trainenv.records.run_folder import RunFolder

    if folder.is_dir() and CheckpointStore(folder / FOLDER).steps():
        record, _ = resume(folder, run, callback, accept_changes=args.accept_changes)
        return record
    shutil.rmtree(folder, ignore_errors=True)
    return RunFolder.create(folder, run.config)


def _config(args: argparse.Namespace) -> RunConfig:
    """Load the configuration of the demo, or of the one that is resumed.

    Raises:
        UserError: There is nothing to resume.
    """
    from trainenv.config.schema import RunConfig

    if not args.resume:
        overrides = {}
        if args.steps is not None:
            overrides["steps"] = args.steps
        return RunConfig.load("demo", overrides)
    if args.out is None or args.steps is not None:
        raise UserError(
            "--resume continues a demo as it was configured; give --out FOLDER, and no --steps"
        )
    if (args.out / "summary.json").is_file() or not (args.out / "config.yaml").is_file():
        raise UserError(
            f"expected an interrupted demo in {args.out}, found none; leave out --resume to start"
            " one"
        )
    return RunConfig.load(args.out / "config.yaml")
