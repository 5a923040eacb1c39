"""`trainenv run`: train a run from a preset or a YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import INTERRUPTED, Result, interruptible, overrides_of
from trainenv.tools.paths import typed
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.records.run_folder import RunFolder
    from trainenv.run import TrainingRun
    from trainenv.types import Snapshot

_BRANCHING = "--branching"
_BY_HAND = "--by-hand"
_PLANNER = "grid"


def run_command(args: argparse.Namespace) -> Result:
    """Train, or go on with a run that was interrupted."""
    from trainenv.cli.progress import Progress
    from trainenv.config.schema import RunConfig
    from trainenv.loop import train
    from trainenv.records.run_folder import RunFolder
    from trainenv.run import TrainingRun

    said = []
    flags = _flags(args)
    if args.resume:
        if args.out is None or args.config is not None or args.set or args.weights:
            raise UserError(
                "--resume goes on with a run as it was configured: give --out FOLDER, and neither CONFIG, --set nor --weights"
            )
        run, folder, callback, closeness = _resumed(args, flags)
        said.append(f"going on from step {run.step}, {closeness}")
    else:
        if args.config is None:
            raise UserError("run needs a CONFIG: a preset such as tiny, or the path of a YAML file")
        if args.accept_changes:
            raise UserError(
                "--accept-changes goes with --resume: a new run has nothing that could have changed; leave it out"
            )
        callback = _responder(flags)
        config = RunConfig.load(args.config, overrides_of(args.set))
        run = TrainingRun.from_config(config)
        if args.weights:
            from trainenv.checkpoints.interop import load_weights

            load_weights(run, args.weights)
            said.append(f"starting from the weights in {args.weights}")
        folder = RunFolder.create(args.out, config)
        folder.flags = flags
    if _BRANCHING in folder.flags:
        cost_estimate = callback.cost_estimate(run)
        said += [str(cost_estimate), cost_estimate.affords]
    with (
        interruptible() as stop,
        Progress(run.config.name, run.config.steps, quiet=args.json) as progress,
    ):
        for sentence in said:
            progress.say(sentence)
        summary = train(run, folder, callback=callback, watch=progress.watch, stop=stop)
    progress.table("Run", [summary])
    for fault in summary["faults"]:
        progress.say(f"from step {fault['step']} on, {fault['times']} time(s): {fault['reason']}")
    if summary["ended"] == "interrupted":
        rescue = "".join(f" {flag}" for flag in folder.flags)
        progress.say(
            f"interrupted; go on with: trainenv run --resume --out {typed(folder.path)}{rescue}"
        )
        return summary, INTERRUPTED
    return summary, 0


def _flags(args: argparse.Namespace) -> tuple[str, ...]:
    """The arguments that say who steers, in full; none: nobody."""
    if args.by_hand and args.branching:
        raise UserError("a run is steered by one: give --by-hand or --branching, not both")
    if args.planner is not None and not args.branching:
        raise UserError(
            f"--planner {args.planner} drafts for --branching, found no --branching; give it too, or neither"
        )
    if args.branching:
        return (_BRANCHING, "--planner", args.planner or _PLANNER)
    return (_BY_HAND,) if args.by_hand else ()


def _responder(flags: Sequence[str]) -> Any:
    """Who steers the run; None: nobody."""
    if _BRANCHING in flags:
        from trainenv.composition.default_loop import branching

        return branching(planner=flags[-1])
    if _BY_HAND in flags:
        from trainenv.agents.baselines.rollback_rule import RollbackRule

        return RollbackRule()
    return None


def _resumed(
    args: argparse.Namespace, flags: tuple[str, ...]
) -> tuple[TrainingRun, RunFolder, Any, str]:
    """The run in the folder, steered as it was; and how close it is to one that was never interrupted, in words."""
    from trainenv.config.schema import RunConfig
    from trainenv.loop import CALLBACK_STATE, resume
    from trainenv.records.made_of import MadeOf
    from trainenv.records.run_folder import RunFolder
    from trainenv.run import TrainingRun

    _, snapshot = RunFolder.resume(
        args.out
    )  # what there is to go on with is found out before anything is built
    made = MadeOf.read(args.out)
    others = []
    before = made.flags if made is not None else ()
    if not flags or (flags[0] == _BRANCHING and args.planner is None and before[:1] == flags[:1]):
        flags = before
    steered = CALLBACK_STATE in snapshot.state
    known = made is not None and (bool(made.flags) or made.callback is None)
    if flags != before and (known or not steered):
        was = made.steered_by if made is not None else "nobody"
        if not args.accept_changes:
            raise UserError(
                f"the run in {args.out} is steered by {was}, found {' '.join(flags)}; "
                "leave that out to go on as it was, or give --accept-changes too"
            )
        others.append(f"it was steered by {was}, is by {' '.join(flags)}")
    callback = _responder(flags)
    run = TrainingRun.from_config(RunConfig.load(args.out / "config.yaml"))
    folder, snapshot = resume(args.out, run, callback, accept_changes=args.accept_changes)
    folder.flags = flags
    return run, folder, callback, _closeness(run, snapshot, folder, others)


def _closeness(
    run: TrainingRun, snapshot: Snapshot, folder: RunFolder, others: Sequence[str]
) -> str:
    """How close a resumed run is to one that was never interrupted, in words."""
    from trainenv.training import numerics

    saved = snapshot.state["numerics"]
    now = numerics.numerics(run.model, run.optimizer, run.device, run.config)
    changed = [
        f"{name} was {saved.get(name)}, is {now[name]}"
        for name in now
        if saved.get(name) != now[name]
    ]
    changed = [*others, *(folder.changes or ()), *changed]
    if changed:
        return f"not to the bit as it was: {'; '.join(changed)}"
    if snapshot.tier == "8bit":
        return "nearly as it was (8bit): the optimizer's moments were rounded when this checkpoint was saved"
    if folder.changes is None:
        return "to the bit as it was (exact), if text and settings are the same: its folder does not say what they were"
    return "to the bit as it was (exact)"
