"""`trainenv run`: train a run from a preset or a YAML file, or resume one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import (
    DIVERGED,
    INTERRUPTED,
    Result,
    add_command,
    add_executor,
    add_overrides,
    as_path,
    interruptible,
    overrides_of,
)
from trainenv.tools.paths import typed
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.records.made_of import MadeOf
    from trainenv.records.run_folder import RunFolder
    from trainenv.run import TrainingRun
    from trainenv.types import Snapshot

BRANCHING = "--branching"
_BY_HAND = "--by-hand"
_PLANNER = "shapes"


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run that is ready to train.

    Attributes:
        run: Run at its first step, or where it was interrupted.
        folder: Folder in which it is recorded.
        callback: Callback that steers it; None if it is not steered.
        notes: Sentences to print before training.
    """

    run: TrainingRun
    folder: RunFolder
    callback: Any
    notes: list[str]


def add_run(commands: Any) -> None:
    """Add the command."""
    run = add_command(
        commands,
        "run",
        run_command,
        "Train a run from a preset or a YAML file, and record everything.",
    )
    run.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="preset or YAML file; left out with --resume",
    )
    add_overrides(run, "optimizer.lr=1e-3")
    run.add_argument(
        "--out", type=as_path, metavar="FOLDER", help="folder of the record (default: runs/NAME)"
    )
    run.add_argument(
        "--weights",
        type=as_path,
        metavar="FILE",
        help="initial weights, a .safetensors file or a .pt file of torch (default: random)",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="resume the interrupted run in --out, configured and steered as before",
    )
    run.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="budget in optimizer steps; with --resume, extend the finished run in --out to it",
    )
    add_steering(run)
    add_executor(run, default=None)
    run.add_argument(
        "--accept-changes",
        action="store_true",
        help="with --resume: resume even if text, configuration or steering have changed",
    )


def add_steering(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose what steers a run."""
    parser.add_argument(
        _BY_HAND,
        action="store_true",
        help="go back and lower the learning rate when the uncertainty index fires",
    )
    parser.add_argument(
        BRANCHING,
        action="store_true",
        help="steer the run: forecast changes, train the best for a few steps, keep what helps",
    )
    parser.add_argument(
        "--planner",
        metavar="NAME",
        help=f"planner used with {BRANCHING} (default: {_PLANNER})",
    )


def run_command(args: argparse.Namespace) -> Result:
    """Train a new run, or resume one; with several processes, one part of it."""
    from trainenv.distributed.controlled_run import together
    from trainenv.distributed.group import leave

    flags = flags_of(args)
    if args.resume:
        resumed = _check_resume(args, flags)
        callback = callback_of(resumed.flags)
        notes = _extend(args)
        run = _built(args.out / "config.yaml", {})

        def begin(run: TrainingRun) -> Start:
            return _resume(args, run, callback, resumed, notes)
    else:
        callback = callback_of(flags)
        run, notes = _new_run(args)

        def begin(run: TrainingRun) -> Start:
            return _begin(args, run, callback, flags, notes)

    with interruptible() as stop:
        result, code = together(run, lambda one: train_to_end(begin(one), args, stop))
    if run.processes.size > 1:
        leave()
    if run.processes.rank:
        return {}, code  # process 0 prints it
    return result, code


def train_to_end(start: Start, args: argparse.Namespace, stop: Callable[[], bool]) -> Result:
    """Train a run to its end, and print the costs before it and the result after it."""
    from trainenv.cli.progress import Progress
    from trainenv.composition.tracked import train
    from trainenv.rollouts import reason_not_folded

    run = start.run
    folder = start.folder
    notes = list(start.notes)
    if BRANCHING in folder.flags:
        cost_estimate = start.callback.cost_estimate(run)
        notes += [str(cost_estimate), cost_estimate.affords]
        if reason := reason_not_folded(run):
            notes.append(reason)
    with Progress(run.config.name, run.config.steps, quiet=args.json) as progress:
        for sentence in notes:
            progress.say(sentence)
        summary = train(run, folder, callback=start.callback, watch=progress.watch, stop=stop)
    progress.table("Run", [summary])
    for fault in summary["faults"]:
        times = "once" if fault["times"] == 1 else f"{fault['times']} times"
        progress.say(f"from step {fault['step']} on, {times}: {fault['reason']}")
    if summary["ended"] == "interrupted":
        progress.say(f"interrupted; resume with: trainenv run --resume --out {typed(folder.path)}")
        return summary, INTERRUPTED
    progress.say(_report(summary, folder))
    if summary["ended"] == "diverged":
        progress.say(_advice(run, folder))
        return summary, DIVERGED
    return summary, 0


def _report(summary: dict[str, Any], folder: RunFolder) -> str:
    """Write the report of a run that has ended, and return the sentence on where it is."""
    from trainenv.report import write_report

    try:
        summary["report"] = str(write_report(folder.path))
    except (OSError, UserError) as error:  # the run itself is there
        again = f"trainenv report {typed(folder.path)}"
        return f"no report was written: {error}; write one with: {again}"
    return f"report: {summary['report']}"


def _advice(run: TrainingRun, folder: RunFolder) -> str:
    """Return what to do about a run that has diverged."""
    from trainenv.checkpoints import FOLDER
    from trainenv.checkpoints.store import CheckpointStore
    from trainenv.records.run_folder import read_validation

    sound = [one["step"] for one in read_validation(folder.path) if one["step"] < run.step]
    steps = [step for step in CheckpointStore(folder.path / FOLDER).steps() if step < run.step]
    lower = f"--set optimizer.lr={run.base_lr / 3:.2g}"
    advice = f"the run diverged at step {run.step}"
    if steps and sound:
        before = max((step for step in steps if step <= sound[-1]), default=steps[0])
        advice += (
            f": continue from before that at a third of the learning rate with: trainenv fork "
            f"{typed(folder.path)}@{before} {lower}"
        )
    else:
        advice += f": train again at a third of the learning rate, with {lower}"
    if not folder.flags:
        advice += f"; or start it with {BRANCHING}, which goes back and lowers the rate"
    return advice


def flags_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the arguments that choose the callback, in full; empty if the run is not steered."""
    if args.by_hand and args.branching:
        raise UserError("one callback steers a run, found two; give --by-hand or --branching")
    if args.planner is not None and not args.branching:
        raise UserError(
            f"--planner {args.planner} needs --branching, found no --branching; give both or"
            " neither"
        )
    if args.branching:
        return (BRANCHING, "--planner", args.planner or _PLANNER)
    if args.by_hand:
        return (_BY_HAND,)
    return ()


def callback_of(flags: Sequence[str]) -> Any:
    """Make the callback that steers the run; None if it is not steered."""
    if BRANCHING in flags:
        from trainenv.composition.default_loop import branching

        return branching(planner=flags[-1])
    if _BY_HAND in flags:
        from trainenv.agents.baselines.rollback_rule import RollbackRule

        return RollbackRule()
    return None


def _built(source: Any, overrides: dict[str, Any]) -> TrainingRun:
    """Build a run; with several processes, this one's part of it."""
    from trainenv.config.schema import RunConfig
    from trainenv.distributed.group import launched
    from trainenv.run import TrainingRun

    config = RunConfig.load(source, overrides)
    if config.distributed == "none" and launched() > 1:
        raise UserError(
            f"a launcher has started {launched()} processes, found distributed none, so that each "
            "would train a run of its own; give --set distributed=ddp or fsdp2"
        )
    return TrainingRun.from_config(config)


def _new_run(args: argparse.Namespace) -> tuple[TrainingRun, list[str]]:
    """Build a new run; return it with sentences to print."""
    if args.config is None:
        raise UserError("run needs a CONFIG: a preset such as tiny, or the path of a YAML file")
    if args.accept_changes:
        raise UserError(
            "--accept-changes goes with --resume, found a new run, in which nothing has changed;"
            " leave it out"
        )
    from trainenv.distributed.executors import check_executor

    overrides = overrides_of(args.set)
    if args.steps is not None:
        overrides["steps"] = args.steps
    if args.executor is not None:
        overrides["branching.executor"] = args.executor
    run = _built(args.config, overrides)
    if args.branching:
        check_executor(run.config.branching.executor, run.config.branching.workers)
    notes = []
    if args.weights:
        from trainenv.checkpoints.interop import load_weights

        load_weights(run, args.weights)
        notes.append(f"starting from the weights in {args.weights}")
    return run, notes


def _begin(
    args: argparse.Namespace,
    run: TrainingRun,
    callback: Any,
    flags: tuple[str, ...],
    notes: list[str],
) -> Start:
    """Make the folder of a new run."""
    from trainenv.records.run_folder import RunFolder

    folder = RunFolder.create(args.out, run.config)
    folder.flags = flags
    return Start(run=run, folder=folder, callback=callback, notes=notes)


@dataclass(frozen=True, kw_only=True)
class _Resumed:
    """Steering of a run that is resumed.

    Attributes:
        flags: Arguments that choose its callback.
        changes: Differences from how it was steered, in words.
    """

    flags: tuple[str, ...]
    changes: list[str]


def _check_resume(args: argparse.Namespace, flags: tuple[str, ...]) -> _Resumed:
    """Return how the run in the folder is steered from now on.

    What can't be resumed is refused before anything is built.
    """
    from trainenv.checkpoints import FOLDER
    from trainenv.checkpoints.store import CheckpointStore
    from trainenv.distributed.group import launched
    from trainenv.records.continuation import check_extension
    from trainenv.records.made_of import MadeOf
    from trainenv.records.run_folder import CALLBACK_STATE, RunFolder

    options = (args.config, args.weights, args.executor)
    if args.out is None or args.set or any(option is not None for option in options):
        raise UserError(
            "--resume continues a run as it was configured; give --out FOLDER, and neither CONFIG,"
            " --set nor --weights nor --executor; to change settings, use: trainenv fork FOLDER"
            " --set KEY=VALUE"
        )
    if args.steps is None:
        _, snapshot = RunFolder.resume(args.out)
    else:
        if launched() > 1:
            raise UserError(
                f"--steps extends a run of one process, found {launched()} processes; train a new"
                " run for more steps"
            )
        check_extension(args.out, args.steps)
        snapshot = CheckpointStore(args.out / FOLDER).load()
    made = MadeOf.read(args.out)
    before: tuple[str, ...] = ()
    known = False
    if made is not None:
        before = made.flags
        known = bool(made.flags) or made.callback is None
    same_loop = bool(flags) and flags[0] == BRANCHING and before[:1] == flags[:1]
    if not flags or (same_loop and args.planner is None):
        flags = before
    changes = []
    if flags != before and (known or CALLBACK_STATE not in snapshot.state):
        if not args.accept_changes:
            raise UserError(
                f"the run in {args.out} is {_steering(made)}, found {' '.join(flags)}; leave that"
                " out to resume it as it was, or give --accept-changes too"
            )
        changes.append(f"it was {_steering(made)}, is steered by {' '.join(flags)}")
    return _Resumed(flags=flags, changes=changes)


def _extend(args: argparse.Namespace) -> list[str]:
    """Give a finished run more steps if the arguments ask for it; return sentences to print."""
    from trainenv.records.continuation import extend

    return [] if args.steps is None else [extend(args.out, args.steps)]


def _resume(
    args: argparse.Namespace,
    run: TrainingRun,
    callback: Any,
    resumed: _Resumed,
    notes: list[str],
) -> Start:
    """Restore the run in the folder, with the callback that it had."""
    from trainenv.loop import resume

    folder, snapshot = resume(args.out, run, callback, accept_changes=args.accept_changes)
    folder.flags = resumed.flags
    exactness = _exactness(run, snapshot, folder, resumed.changes)
    note = f"resuming from step {run.step}, {exactness}"
    return Start(run=run, folder=folder, callback=callback, notes=[*notes, note])


def _steering(made: MadeOf | None) -> str:
    """Describe the callback of a recorded run: `not steered`, or its flags or class."""
    if made is None or (not made.flags and made.callback is None):
        return "not steered"
    return f"steered by {made.steered_by}"


def _exactness(
    run: TrainingRun, snapshot: Snapshot, folder: RunFolder, others: Sequence[str]
) -> str:
    """Describe how close a resumed run is to one that was never interrupted.

    Args:
        run: Resumed run.
        snapshot: Checkpoint that it was resumed from.
        folder: Its folder, which knows what has changed in text and settings.
        others: Other changes, in words.
    """
    saved = snapshot.state["numerics"]
    now = run.numerics()
    changed = [*others, *(folder.changes or ())]
    changed += [
        f"{name} was {saved.get(name)}, is {now[name]}"
        for name in now
        if saved.get(name) != now[name]
    ]
    if changed:
        return f"not bit-exact: {'; '.join(changed)}"
    if snapshot.tier == "8bit":
        return (
            "nearly exact (8bit): the optimizer's moments were rounded when this checkpoint was"
            " saved"
        )
    if folder.changes is None:
        return "bit-exact if text and settings are unchanged: the folder has no record of them"
    return "bit-exact"
