"""`trainenv demo`: a tiny run under stressors, once left alone and once steered, with a report."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
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
_SAME = 0.05  # change of the final loss in percent that would be printed as 0.0
_TEXTS = {"stdlib": "the source code of Python's standard library"}
_TOKENS = {"bytes": "bytes", "bpe": "tokens", "gpt2": "tokens"}
_PLANTS = {
    "random_tokens": "corrupt data",
    "lr_spike": "a spike of the learning rate",
    "lost_moments": "lost moments of the optimizer",
}


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
    progress = Progress("demo", 1, quiet=args.json)
    for sentence in _introduction(run, config):
        progress.say(sentence)
    summaries: list[dict[str, Any]] = []
    with interruptible() as stop:
        for method in _METHODS:
            run.restore(start)
            run.ledger.load({})
            summaries.append({**_train(method, root.path, run, stop, args), "method": method})
            if stop():
                break
    progress.table("The same budget, left alone and steered", summaries)
    result: dict[str, Any] = {"command": "demo", "folder": str(root.path), "runs": summaries}
    if stop():
        progress.say(f"interrupted; resume with: trainenv demo --resume --out {typed(root.path)}")
        return result, INTERRUPTED
    steered = root.path / _METHODS[-1]
    progress.say(RunReport(steered).tree(width=min(110, progress.out.width)))
    result["report"] = str(write_report(steered, root.path / "report.html"))
    progress.say(f"report: {result['report']}")
    result["verdict"] = _verdict(summaries)
    progress.say(result["verdict"])
    progress.say("next, a run of your own: trainenv run tiny --branching --out runs/mine")
    root.finish(result)
    return result, 0


def _introduction(run: TrainingRun, config: RunConfig) -> tuple[str, str, str]:
    """Return what is trained, which faults are planted, and what the two runs may do."""
    unit = _TOKENS[config.corpus.tokenizer]
    text = _TEXTS.get(config.corpus.name, config.corpus.name)
    size = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    share = 100 * config.branching.max_waste
    return (
        f"trained twice: a GPT-2 of {size:.2f} million parameters, for {config.steps} steps of "
        f"{config.batch_size} sequences of {config.model.context} {unit}, on {text}, at a learning "
        f"rate of {config.optimizer.lr:g}",
        f"planted faults, the same in both runs: {_faults(config)}",
        "left alone: nothing is changed; branching: the learning rate and clipping may be changed, "
        f"and bad steps undone, with at most {share:.0f} % of the same compute",
    )


def _faults(config: RunConfig) -> str:
    """Return the planted faults in words."""
    stressors = config.stressors
    found = [
        f"{words} in {100 * rate:g} % of the batches"
        for words, rate in (
            ("rare tokens", stressors.rare_tokens),
            ("very long sequences", stressors.long_sequence),
            ("broken characters", stressors.artefacts),
        )
        if rate
    ]
    if stressors.block_shuffle:
        found.append(f"{100 * stressors.block_shuffle:g} % of the data out of order")
    if stressors.harsh_warmup_steps:
        found.append(f"a harsh warm-up of {stressors.harsh_warmup_steps} steps")
    found += [
        f"{_PLANTS.get(plant.kind, plant.kind)} at step {plant.at}"
        for plant in stressors.planted
        if plant.at < config.steps
    ]
    return ", ".join(found) or "none"


def _verdict(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return how the two runs compare, whichever is better."""
    alone, steered = (one["final_validation_loss"] for one in summaries)
    if steered is None or alone is None:
        lost = " and ".join(
            one["method"] for one in summaries if one["final_validation_loss"] is None
        )
        return f"no comparison: {lost} diverged; the report shows where"
    change = 100 * (steered / alone - 1)
    direction = "lower" if change < 0 else "higher"
    where = f"steered ends {abs(change):.1f} % {direction} at the same compute"
    if abs(change) < _SAME:
        where = "steered ends where the run left alone does, at the same compute"
    return f"{where}: validation loss {steered:.3f} against {alone:.3f} nats per token"


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
