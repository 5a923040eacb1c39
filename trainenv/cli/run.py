"""`trainenv run`: train a run from a preset or a YAML file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from trainenv.cli.asking import INTERRUPTED, Result, interruptible, overrides_of
from trainenv.paths import typed
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.run import TrainingRun
    from trainenv.types import Snapshot


def run_command(args: argparse.Namespace) -> Result:
    """Train, or go on with a run that was interrupted."""
    from trainenv.config import RunConfig
    from trainenv.driving import drive, resume
    from trainenv.progress import Progress
    from trainenv.records.folder import RunFolder
    from trainenv.run import TrainingRun

    said, responder = [], _responder(args)
    if args.resume:
        if args.out is None or args.config is not None or args.set or args.weights:
            raise UserError(
                "--resume goes on with a run as it was configured: give --out FOLDER, and neither CONFIG, --set nor --weights"
            )
        RunFolder.resume(args.out)  # what there is to go on with is found out before anything is built
        config = RunConfig.load(args.out / "config.yaml")
        run = TrainingRun.from_config(config)
        folder, snapshot = resume(args.out, run, responder)
        said.append(f"going on from step {run.step}, {_closeness(run, snapshot)}")
    else:
        if args.config is None:
            raise UserError("run needs a CONFIG: a preset such as tiny, or the path of a YAML file")
        config = RunConfig.load(args.config, overrides_of(args.set))
        run = TrainingRun.from_config(config)
        if args.weights:
            from trainenv.checkpoints.convert import load_weights

            load_weights(run, args.weights)
            said.append(f"starting from the weights in {args.weights}")
        folder = RunFolder.create(args.out, config)
    if args.branching:
        said.append(str(responder.statement(run)))
    with interruptible() as stop, Progress(config.name, config.steps, quiet=args.json) as progress:
        for sentence in said:
            progress.say(sentence)
        summary = drive(run, folder, responder=responder, watch=progress.watch, stop=stop)
    progress.table("Run", [summary])
    if summary["ended"] == "interrupted":
        rescue = " --by-hand" if args.by_hand else f" --branching --planner {args.planner}" if args.branching else ""
        progress.say(f"interrupted; go on with: trainenv run --resume --out {typed(folder.path)}{rescue}")
        return summary, INTERRUPTED
    return summary, 0


def _responder(args: argparse.Namespace) -> Any:
    """Who steers the run; None: nobody."""
    if args.by_hand and args.branching:
        raise UserError("a run is steered by one: give --by-hand or --branching, not both")
    if args.branching:
        from trainenv.cli.loop import branching

        return branching(planner=args.planner)
    if args.by_hand:
        from agents.by_hand import ByHand

        return ByHand()
    return None


def _closeness(run: TrainingRun, snapshot: Snapshot) -> str:
    """How close a resumed run is to one that was never interrupted, in words."""
    from trainenv import devices

    if snapshot.tier == "8bit":
        return "nearly as it was (8bit): the optimizer's moments were rounded when this checkpoint was saved"
    saved, now = snapshot.state["numerics"], devices.numerics(run.model, run.optimizer, run.device, run.config)
    changed = [f"{name} was {saved.get(name)}, is {now[name]}" for name in now if saved.get(name) != now[name]]
    return f"not to the bit as it was: {'; '.join(changed)}" if changed else "to the bit as it was (exact)"
