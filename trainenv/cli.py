"""The command line, and the only file of trainenv that knows its siblings: here the parts are put together."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainenv import __version__
from trainenv.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

USER_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 the doctor found a fault, 2 a mistake to mend, 130 interrupted."""
    args = _parser().parse_args(arguments)
    try:
        result, code = args.command(args)
    except UserError as error:
        print(f"trainenv: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    if args.json:
        print(json.dumps(result))
    return int(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trainenv", description="Language-model training runs that can be forked and steered.")
    parser.add_argument("--version", action="version", version=f"trainenv {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], tuple[dict[str, Any], int]], about: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.add_argument("--json", action="store_true", help="print one JSON object as the last line")
        sub.set_defaults(command=function)
        return sub

    run = command("run", _run, "Train a run from a preset or a YAML file, recording everything.")
    run.add_argument("config", nargs="?", help="a preset's name, or the path of a YAML file; with --resume, none")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. --set optimizer.lr=1e-3")
    run.add_argument("--out", type=Path, metavar="FOLDER", help="where to record; runs/NAME by default")
    run.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out, as it was")
    run.add_argument("--by-hand", action="store_true", help="rewind and cut the learning rate whenever the index fires")

    demo = command("demo", _demo, "A tiny run under stressors, left alone and rescued by hand, with a plot and a table.")
    demo.add_argument("--out", type=Path, metavar="FOLDER", help="where to record; runs/demo by default")
    demo.add_argument("--steps", type=int, help="budget in optimizer steps")

    command("doctor", _doctor, "Check this machine: versions, memory, devices, exactness and speed.")
    return parser


def _run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from agents.by_hand import ByHand
    from trainenv.config import RunConfig
    from trainenv.driving import drive
    from trainenv.progress import Progress
    from trainenv.records.folder import RunFolder
    from trainenv.run import TrainingRun

    if args.resume:
        if args.out is None or args.config is not None or args.set:
            raise UserError("--resume goes on with a run as it was configured: give --out FOLDER, and neither CONFIG nor --set")
        folder, snapshot = RunFolder.resume(args.out)
        config = RunConfig.load(args.out / "config.yaml")
        run = TrainingRun.from_config(config)
        run.restore(snapshot)
        run.ledger.load(snapshot.state["ledger"])
        folder.new_line(run.step)
    else:
        if args.config is None:
            raise UserError("run needs a CONFIG: a preset such as tiny, or the path of a YAML file")
        config = RunConfig.load(args.config, _overrides(args.set))
        run = TrainingRun.from_config(config)
        folder = RunFolder.create(args.out, config)
    responder = ByHand() if args.by_hand else None
    with _interruptible() as stop, Progress(config.name, config.steps, quiet=args.json) as progress:
        summary = drive(run, folder, responder=responder, watch=progress.watch, stop=stop)
    progress.table("Run", [summary])
    if summary["ended"] == "interrupted":
        rescue = " --by-hand" if args.by_hand else ""
        progress.say(f"interrupted; go on with: trainenv run --resume --out {folder.path}{rescue}")
        return summary, INTERRUPTED
    return summary, 0


def _demo(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
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
    with _interruptible() as stop:
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


def _doctor(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from trainenv.doctor import examine
    from trainenv.progress import Progress

    with Progress("doctor", 1, quiet=args.json) as progress:
        findings = examine()
    for finding in findings:
        progress.say(f"{'ok  ' if finding['ok'] else 'FAIL'} {finding['what']}: {finding['found']}")
        if finding["remedy"]:
            progress.say(f"     → {finding['remedy']}")
    healthy = all(finding["ok"] for finding in findings)
    return {"command": "doctor", "healthy": healthy, "findings": findings}, 0 if healthy else 1


def _overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` pairs, the values read as YAML."""
    from trainenv.yaml_files import parse_value

    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"--set takes KEY=VALUE, found {pair!r}; for example --set optimizer.lr=1e-3")
        try:
            overrides[key] = parse_value(value)
        except yaml.YAMLError:
            raise UserError(f"--set {key}: the value {value!r} is not valid YAML; quote it") from None
    return overrides


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop at the next block; a second one stops at once."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
