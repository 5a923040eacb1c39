"""The command line, and the only part of trainenv that knows its siblings: here the parts are put together. A file a command."""

from __future__ import annotations

import argparse
import errno
import io
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.cli.checkpoint import checkpoint_command
from trainenv.cli.compare import compare_command
from trainenv.cli.demo import demo_command
from trainenv.cli.doctor import doctor_command
from trainenv.cli.options import INTERRUPTED, USER_ERROR, Result
from trainenv.cli.replay import replay_command
from trainenv.cli.report import report_command
from trainenv.cli.run import run_command
from trainenv.cli.worldmodel import build_command
from trainenv.tools.paths import expanded
from trainenv.tools.version import VERSION
from trainenv.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["INTERRUPTED", "USER_ERROR", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 a fault was found, 2 a mistake to mend, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a letter that the terminal lacks is no reason to stop
    args = _parser().parse_args(arguments)
    try:
        for name, value in vars(args).items():
            if isinstance(value, Path):
                setattr(args, name, expanded(value))  # a shell leaves the ~ of --out=~/mine alone
            elif value == [] and name != "set":  # as argparse reads it
                raise UserError(
                    f"expected a value in --{name}=--, found none; write ./-- if that is a name"
                )
        with _warnings_in_sentences():
            result, code = args.command(args)
    except UserError as error:
        print(f"trainenv: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        if error.filename:
            print(
                f"trainenv: {error.filename}: {error.strerror}; give another path, or mend that one",
                file=sys.stderr,
            )
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):  # a write does not say where
            print(
                f"trainenv: a file can't be written: {error.strerror}; make room, or give another folder",
                file=sys.stderr,
            )
        else:  # no file of the user's: a broken pipe, say
            raise
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    if args.json:
        print(json.dumps(result))
    return int(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainenv", description="Language-model training runs that can be forked and steered."
    )
    parser.add_argument("--version", action="version", version=f"trainenv {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str,
        function: Callable[[argparse.Namespace], Result],
        about: str,
        among: Any = commands,
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = among.add_parser(name, help=about, description=about)
        sub.add_argument(
            "--json", action="store_true", help="print one JSON object as the last line"
        )
        sub.set_defaults(command=function)
        return sub

    accepting = "with --resume: go on although text, configuration or who steers have changed since"
    run = command(
        "run", run_command, "Train a run from a preset or a YAML file, recording everything."
    )
    run.add_argument(
        "config", nargs="?", help="a preset's name, or the path of a YAML file; with --resume, none"
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override, e.g. --set optimizer.lr=1e-3",
    )
    run.add_argument(
        "--out", type=_path, metavar="FOLDER", help="where to record; runs/NAME by default"
    )
    run.add_argument(
        "--weights",
        type=_path,
        metavar="FILE",
        help="start from a .safetensors file, or a .pt file of torch's",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted run in --out, as it was and steered as it was",
    )
    run.add_argument(
        "--by-hand",
        action="store_true",
        help="rewind and cut the learning rate whenever the index fires",
    )

    run.add_argument(
        "--branching",
        action="store_true",
        help="the whole loop: draft, verify and go on with what holds up",
    )
    run.add_argument(
        "--planner", metavar="NAME", help="that drafts for --branching; grid by default"
    )
    run.add_argument("--accept-changes", action="store_true", help=accepting)

    demo = command(
        "demo", demo_command, "A tiny run under stressors, left alone and steered, with a report."
    )
    demo.add_argument(
        "--out", type=_path, metavar="FOLDER", help="where to record; runs/demo by default"
    )
    demo.add_argument(
        "--resume", action="store_true", help="go on with the interrupted demo in --out"
    )
    demo.add_argument("--accept-changes", action="store_true", help=accepting)
    demo.add_argument("--steps", type=int, help="budget in optimizer steps")

    compare = command(
        "compare", compare_command, "Methods × trunks at equal compute: who trains which run best."
    )
    compare.add_argument(
        "suite",
        nargs="?",
        default="quick",
        metavar="CONFIG",
        help="quick, full, or the path of a YAML file",
    )
    compare.add_argument(
        "--out", type=_path, metavar="FOLDER", help="where to record; runs/compare-NAME by default"
    )
    compare.add_argument("--methods", metavar="A,B", help="methods, in place of the suite's")
    compare.add_argument("--trunks", metavar="A,B", help="trunks of the suite; all by default")
    compare.add_argument("--seeds", type=int, metavar="N", help="runs a trunk")
    compare.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="processes, one core each; 0: in this one",
    )
    compare.add_argument("--keep", action="store_true", help="keep the folders of all runs")

    report = command(
        "report",
        report_command,
        "Write what became of a run, or of a comparison, as one HTML file.",
    )
    report.add_argument("folder", type=_path, metavar="FOLDER", help="of a run or of a comparison")
    report.add_argument(
        "--out", type=_path, metavar="FILE", help="report.html in the folder by default"
    )
    report.add_argument(
        "--tensorboard",
        type=_path,
        metavar="DIR",
        help="also write the run as TensorBoard reads it",
    )

    replay = command(
        "replay",
        replay_command,
        "Train the branches of a recorded decision again; exit code 1 if they differ.",
    )
    replay.add_argument("folder", type=_path, metavar="FOLDER", help="of a run")
    replay.add_argument(
        "step", metavar="STEP", help="of the decision; 500-2 for the second at step 500"
    )
    replay.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override, e.g. --set device=cpu",
    )

    about = "Look after the checkpoints of a run."
    checkpoint = commands.add_parser("checkpoint", help=about, description=about)
    actions = checkpoint.add_subparsers(required=True, metavar="ACTION", dest="action")

    def action(name: str, about: str) -> argparse.ArgumentParser:
        sub = command(name, checkpoint_command, about, among=actions)
        sub.add_argument(
            "folder",
            type=_path,
            metavar="FOLDER",
            help="a run's folder, or the checkpoints folder in it",
        )
        return sub

    action("verify", "Read every byte and say which files are whole; exit code 1 if one is not.")
    action("show", "List the checkpoints: step, tier, size and who holds them.")
    collect = action("gc", "Delete the checkpoints that need not be kept.")
    collect.add_argument("--dry-run", action="store_true", help="only say what would go")
    collect.add_argument(
        "--keep-last",
        type=int,
        metavar="N",
        help="keep the newest N, not as many as the run is configured to",
    )
    export = action(
        "export", "Write the weights of a checkpoint as plain torch and transformers load them."
    )
    export.add_argument(
        "out",
        type=_path,
        metavar="OUT",
        help="a path ending in .safetensors, or in .pt with the optimizer's state",
    )
    export.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="that the checkpoint was saved at; the newest by default",
    )

    about = "Make a world model: what forecasts what interventions do to a run."
    world = commands.add_parser("worldmodel", help=about, description=about)
    making = world.add_subparsers(required=True, metavar="ACTION", dest="action")
    build = command(
        "build",
        build_command,
        "Branch many small runs, train on them, calibrate, judge; resumable.",
        among=making,
    )
    build.add_argument(
        "--out", type=_path, metavar="FOLDER", help="of all of it; runs/worldmodel by default"
    )
    build.add_argument(
        "--trunks",
        type=int,
        default=200,
        metavar="N",
        help="runs to branch; 200 by default, an hour on two cores",
    )
    build.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes, one core each; 2 by default"
    )
    build.add_argument("--seed", type=int, default=0, metavar="N", help="of everything")

    command(
        "doctor",
        doctor_command,
        "Check this machine: versions, memory, devices, exactness and speed.",
    )
    return parser


def _path(text: str) -> Path:
    """A path among the arguments."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found an empty one")
    return Path(text)


@contextmanager
def _warnings_in_sentences() -> Iterator[None]:
    """What is warned about in a command is for whoever typed it: a sentence on stderr, without a line of source."""

    def tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        print(
            f"trainenv: {'' if category is UserWarning else category.__name__ + ': '}{message}",
            file=sys.stderr,
        )

    with warnings.catch_warnings():
        warnings.showwarning = tell
        yield
