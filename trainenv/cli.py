"""The command line, and the only file of trainenv that knows its siblings: here the parts are put together."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainenv import __version__
from trainenv.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainenv.run import TrainingRun
    from trainenv.types import Snapshot
    from worldmodel.dataset.lockstep import Lockstep

USER_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 a fault was found, 2 a mistake to mend, 130 interrupted."""
    args = _parser().parse_args(arguments)
    try:
        with _warnings_in_sentences():
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
        name: str, function: Callable[[argparse.Namespace], tuple[dict[str, Any], int]], about: str, among: Any = commands
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = among.add_parser(name, help=about, description=about)
        sub.add_argument("--json", action="store_true", help="print one JSON object as the last line")
        sub.set_defaults(command=function)
        return sub

    run = command("run", _run, "Train a run from a preset or a YAML file, recording everything.")
    run.add_argument("config", nargs="?", help="a preset's name, or the path of a YAML file; with --resume, none")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. --set optimizer.lr=1e-3")
    run.add_argument("--out", type=Path, metavar="FOLDER", help="where to record; runs/NAME by default")
    run.add_argument("--weights", type=Path, metavar="FILE", help="start from a .safetensors file, or a .pt file of torch's")
    run.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out, as it was")
    run.add_argument("--by-hand", action="store_true", help="rewind and cut the learning rate whenever the index fires")

    demo = command("demo", _demo, "A tiny run under stressors, left alone and rescued by hand, with a plot and a table.")
    demo.add_argument("--out", type=Path, metavar="FOLDER", help="where to record; runs/demo by default")
    demo.add_argument("--steps", type=int, help="budget in optimizer steps")

    about = "Look after the checkpoints of a run."
    checkpoint = commands.add_parser("checkpoint", help=about, description=about)
    actions = checkpoint.add_subparsers(required=True, metavar="ACTION", dest="action")

    def action(name: str, about: str) -> argparse.ArgumentParser:
        sub = command(name, _checkpoint, about, among=actions)
        sub.add_argument("folder", type=Path, metavar="FOLDER", help="a run's folder, or the checkpoints folder in it")
        return sub

    action("verify", "Read every byte and say which files are whole; exit code 1 if one is not.")
    action("show", "List the checkpoints: step, tier, size and who holds them.")
    collect = action("gc", "Delete the checkpoints that need not be kept.")
    collect.add_argument("--dry-run", action="store_true", help="only say what would go")
    collect.add_argument("--keep-last", type=int, metavar="N", help="keep the newest N, not as many as the run is configured to")
    export = action("export", "Write the weights of a checkpoint as plain torch and transformers load them.")
    export.add_argument(
        "out", type=Path, metavar="OUT", help="a path ending in .safetensors, or in .pt with the optimizer's state"
    )
    export.add_argument("--step", type=int, metavar="N", help="that the checkpoint was saved at; the newest by default")

    about = "Make a world model: what forecasts what interventions do to a run."
    world = commands.add_parser("worldmodel", help=about, description=about)
    making = world.add_subparsers(required=True, metavar="ACTION", dest="action")
    build = command("build", _build_model, "Branch many small runs, train on them, calibrate, judge; resumable.", among=making)
    build.add_argument("--out", type=Path, metavar="FOLDER", help="of all of it; runs/worldmodel by default")
    build.add_argument(
        "--trunks", type=int, default=200, metavar="N", help="runs to branch; 200 by default, an hour on two cores"
    )
    build.add_argument("--workers", type=int, default=2, metavar="N", help="processes, one core each; 2 by default")
    build.add_argument("--seed", type=int, default=0, metavar="N", help="of everything")

    command("doctor", _doctor, "Check this machine: versions, memory, devices, exactness and speed.")
    return parser


def _run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from agents.by_hand import ByHand
    from trainenv.config import RunConfig
    from trainenv.driving import drive
    from trainenv.progress import Progress
    from trainenv.records.folder import RunFolder
    from trainenv.run import TrainingRun

    said = []
    if args.resume:
        if args.out is None or args.config is not None or args.set or args.weights:
            raise UserError(
                "--resume goes on with a run as it was configured: give --out FOLDER, and neither CONFIG, --set nor --weights"
            )
        folder, snapshot = RunFolder.resume(args.out)
        config = RunConfig.load(args.out / "config.yaml")
        run = TrainingRun.from_config(config)
        run.restore(snapshot)
        run.ledger.load(snapshot.state["ledger"])
        said.append(f"going on from step {run.step}, {_closeness(run, snapshot)}")
    else:
        if args.config is None:
            raise UserError("run needs a CONFIG: a preset such as tiny, or the path of a YAML file")
        config = RunConfig.load(args.config, _overrides(args.set))
        run = TrainingRun.from_config(config)
        if args.weights:
            from trainenv.checkpoints.convert import load_weights

            load_weights(run, args.weights)
            said.append(f"starting from the weights in {args.weights}")
        folder = RunFolder.create(args.out, config)
    responder = ByHand() if args.by_hand else None
    with _interruptible() as stop, Progress(config.name, config.steps, quiet=args.json) as progress:
        for sentence in said:
            progress.say(sentence)
        summary = drive(run, folder, responder=responder, watch=progress.watch, stop=stop)
    progress.table("Run", [summary])
    if summary["ended"] == "interrupted":
        rescue = " --by-hand" if args.by_hand else ""
        progress.say(f"interrupted; go on with: trainenv run --resume --out {folder.path}{rescue}")
        return summary, INTERRUPTED
    return summary, 0


def _closeness(run: TrainingRun, snapshot: Snapshot) -> str:
    """How close a resumed run is to one that was never interrupted, in words."""
    from trainenv import devices

    if snapshot.tier == "8bit":
        return "nearly as it was (8bit): the optimizer's moments were rounded when this checkpoint was saved"
    saved, now = snapshot.state["numerics"], devices.numerics(run.model, run.optimizer, run.device, run.config)
    changed = [f"{name} was {saved.get(name)}, is {now[name]}" for name in now if saved.get(name) != now[name]]
    return f"not to the bit as it was: {'; '.join(changed)}" if changed else "to the bit as it was (exact)"


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


def _checkpoint(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from trainenv.checkpoints import commands
    from trainenv.progress import Progress

    say = Progress(args.action, 1, quiet=args.json).say
    if args.action == "verify":
        return commands.verify(args.folder, say)
    if args.action == "show":
        return commands.show(args.folder, say)
    if args.action == "gc":
        return commands.collect(args.folder, say, dry_run=args.dry_run, keep_last=args.keep_last)
    return commands.export(args.folder, say, out=args.out, step=args.step)


def make_small_run(overrides: Mapping[str, Any]) -> TrainingRun:
    """What branches are taken of: `tiny`, but for what is overridden. At the top of a module, for other processes import it."""
    from trainenv.run import TrainingRun

    return TrainingRun.from_config("tiny", overrides)


def fold_runs(runs: Sequence[Any]) -> Lockstep:
    """Runs side by side, likewise."""
    from trainenv.folded import Folded

    return Folded(runs)


def _build_model(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from trainenv.progress import Progress
    from worldmodel.build import Recipe, build
    from worldmodel.dataset import Progress as Made

    recipe = Recipe(trunks=args.trunks, workers=args.workers, seed=args.seed)
    folder = args.out or Path("runs/worldmodel")
    with _interruptible() as stop, Progress("worldmodel", recipe.trunks, quiet=args.json) as progress:

        def show(made: Made) -> None:
            left = f"{made.seconds_left / 60:.0f} minutes left"
            progress.say(f"{made.done} of {made.total} runs branched, {made.steps} steps, about {left} {made.error}".rstrip())

        report = build(folder, recipe, make_small_run, fold=fold_runs, say=progress.say, progress=show, stop=stop)
    if report["interrupted"]:
        progress.say(f"interrupted; go on with the same command: {report['trunks']} runs are there")
        return report, INTERRUPTED
    progress.say(f"built {folder / 'model'}; how good it is on runs that it has not seen: {folder / 'report.json'}")
    return {"command": "worldmodel build", **report}, 0


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
def _warnings_in_sentences() -> Iterator[None]:
    """What is warned about in a command is for whoever typed it: a sentence on stderr, without a line of source."""

    def tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        print(f"trainenv: {'' if category is UserWarning else category.__name__ + ': '}{message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = tell
        yield


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
