"""`trainenv worldmodel`: make a world model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import INTERRUPTED, Result, interruptible

if TYPE_CHECKING:
    from trainenv.run import TrainingRun
    from trainenv.types import Run, RunGroup


def make_small_run(overrides: Mapping[str, Any]) -> TrainingRun:
    """What branches are taken of: `tiny`, but for what is overridden.

    At the top of a module, for other processes import it.
    """
    from trainenv.run import TrainingRun

    return TrainingRun.from_config("tiny", overrides)


def fold_runs(runs: Sequence[Any]) -> RunGroup[Run]:
    """Runs side by side, likewise."""
    from trainenv.rollouts.folded import Folded

    return Folded(runs)


def build_command(args: argparse.Namespace) -> Result:
    """Make a world model: branch, train, calibrate, judge."""
    from trainenv.cli.progress import Progress
    from trainenv.worldmodel.build import Recipe, build
    from trainenv.worldmodel.dataset import Progress as Made

    recipe = Recipe(trunks=args.trunks, workers=args.workers, seed=args.seed)
    folder = args.out or Path("runs/worldmodel")
    with (
        interruptible() as stop,
        Progress("worldmodel", recipe.trunks, quiet=args.json) as progress,
    ):

        def show(made: Made) -> None:
            left = f"{made.seconds_left / 60:.0f} minutes left"
            progress.say(
                f"{made.done} of {made.total} runs branched, {made.steps} steps, about {left} {made.error}".rstrip()
            )

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
        progress.say(f"interrupted; go on with the same command: {report['trunks']} runs are there")
        return report, INTERRUPTED
    progress.say(
        f"built {folder / 'model'}; how good it is on runs that it has not seen: {folder / 'report.json'}"
    )
    return {"command": "worldmodel build", **report}, 0
