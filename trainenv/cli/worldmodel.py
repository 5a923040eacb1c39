"""`trainenv worldmodel`: build a world model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import (
    INTERRUPTED,
    Result,
    add_actions,
    add_command,
    add_executor,
    as_path,
    interruptible,
)

if TYPE_CHECKING:
    from trainenv.run import TrainingRun
    from trainenv.types import Run, RunGroup


def add_worldmodel(commands: Any) -> None:
    """Add the command and its action."""
    actions = add_actions(
        commands, "worldmodel", "Build a world model, which forecasts the effect of interventions."
    )
    build = add_command(
        actions,
        "build",
        build_command,
        "Branch many small runs, train a model on them, calibrate and evaluate it; resumable.",
    )
    build.add_argument(
        "--out",
        type=as_path,
        metavar="FOLDER",
        help="folder of the data and the model (default: runs/worldmodel)",
    )
    build.add_argument(
        "--trunks",
        type=int,
        default=120,
        metavar="N",
        help="number of runs to branch (default: %(default)s, 40 minutes on two cores)",
    )
    build.add_argument(
        "--groups",
        type=int,
        nargs="+",
        default=[156, 185, 84, 123],
        metavar="N",
        help="number of groups of runs under whole paths of the learning rate, for each round"
        " (default: 156 185 84 123, about 50 minutes on two cores)",
    )
    build.add_argument(
        "--long-groups",
        type=int,
        nargs="*",
        default=[26, 30],
        metavar="N",
        help="number of groups of runs of 1000 to 6000 steps, for each further round"
        " (default: 26 30, about 35 minutes on two cores)",
    )
    build.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="number of processes, one core each (default: %(default)s)",
    )
    add_executor(build)
    build.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)"
    )


def make_small_run(overrides: Mapping[str, Any]) -> TrainingRun:
    """Make the run that is branched: `tiny` with overrides.

    The function is at the top of a module because other processes import it.
    """
    from trainenv.run import TrainingRun

    return TrainingRun.from_config("tiny", overrides)


def fold_runs(runs: Sequence[Any]) -> RunGroup[Run]:
    """Fold runs into one that trains them together; other processes import this function too."""
    from trainenv.rollouts.folded import Folded

    return Folded(runs)


def build_command(args: argparse.Namespace) -> Result:
    """Build a world model: branch runs, train, calibrate, evaluate."""
    from trainenv.cli.progress import Progress
    from trainenv.distributed.executors import check_executor
    from trainenv.worldmodel.build import Recipe, build
    from trainenv.worldmodel.dataset import Progress as DatasetProgress
    from trainenv.worldmodel.paths.build import PathRecipe

    check_executor(args.executor, args.workers)
    paths = PathRecipe(
        groups=tuple(args.groups),
        long_groups=tuple(args.long_groups),
        workers=args.workers,
        executor=args.executor,
        seed=args.seed,
    )
    recipe = Recipe(
        trunks=args.trunks,
        workers=args.workers,
        executor=args.executor,
        seed=args.seed,
        paths=paths,
    )
    folder = args.out or Path("runs/worldmodel")
    with (
        interruptible() as stop,
        Progress("worldmodel", recipe.trunks, quiet=args.json) as progress,
    ):

        def show(made: DatasetProgress) -> None:
            sentence = (
                f"{made.done} of {made.total} runs branched, {made.steps} steps,"
                f" about {made.seconds_left / 60:.0f} minutes left {made.error}"
            )
            progress.say(sentence.rstrip())

        report = build(
            folder,
            recipe,
            make_small_run,
            fold=fold_runs,
            say=progress.say,
            progress=show,
            stop=stop,
        )
    if report["interrupted"]:
        progress.say(f"interrupted after {report['trunks']} runs; resume with the same command")
        return report, INTERRUPTED
    progress.say(
        f"built {folder / 'model'}; its errors on runs that it has not seen are in"
        f" {folder / 'report.json'}"
    )
    return {"command": "worldmodel build", **report}, 0
