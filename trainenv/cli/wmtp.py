"""`trainenv wmtp`: train, evaluate and compare weightings of multi-token prediction."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainenv.cli.options import (
    INTERRUPTED,
    Result,
    add_actions,
    add_command,
    add_overrides,
    as_path,
    interruptible,
    overrides_of,
)
from trainenv.types import UserError

_SHOWN = (
    "exact_match",
    "pass@1",
    "pass@10",
    "pass@100",
    "validation_loss",
    "flops",
    "training_seconds",
    "memory",
    "grad_norm",
    "loss_variance",
    "weight_entropy",
    "effective_sample_size",
    "clamp_rate",
    "value_explained_variance",
    "acceptance",
    "tokens_per_call",
    "speed_up",
)


def add_wmtp(commands: Any) -> None:
    """Add the command and its actions."""
    actions = add_actions(
        commands, "wmtp", "Train, evaluate and compare weightings of multi-token prediction."
    )
    _add_train(actions)
    _add_evaluate(actions)
    _add_compare(actions)


def _add_train(actions: Any) -> None:
    train = add_command(
        actions,
        "train",
        train_command,
        "Train one method on tasks; the same command resumes an interrupted run.",
    )
    train.add_argument(
        "method",
        metavar="METHOD",
        help="weighting of the tokens: uniform, critic, rho1, random, shuffled or shuffled-critic",
    )
    _add_preset(train)
    train.add_argument(
        "--out",
        type=as_path,
        metavar="FOLDER",
        help="folder of the run (default: runs/wmtp-METHOD)",
    )
    train.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)"
    )
    train.add_argument(
        "--reference",
        type=as_path,
        metavar="FILE",
        help="weights of the reference of rho1 and shuffled, .safetensors (default: a reference"
        " is trained first, in FOLDER-reference)",
    )
    add_overrides(train, "steps=100")


def _add_evaluate(actions: Any) -> None:
    evaluate = add_command(
        actions,
        "evaluate",
        evaluate_command,
        "Evaluate a finished run on the test tasks: exact match, pass@k, drafting by its heads.",
    )
    evaluate.add_argument("folder", type=as_path, metavar="FOLDER", help="folder of the run")
    evaluate.add_argument(
        "--samples",
        type=int,
        default=10,
        metavar="N",
        help="samples of each task (default: %(default)s)",
    )
    evaluate.add_argument(
        "--k",
        type=int,
        nargs="+",
        metavar="K",
        help="numbers k of pass@k (default: those of 1, 10, 100 up to --samples)",
    )
    evaluate.add_argument(
        "--tasks",
        type=int,
        default=64,
        metavar="N",
        help="most tasks of the test part (default: %(default)s)",
    )
    evaluate.add_argument(
        "--max-tokens",
        type=int,
        default=48,
        metavar="N",
        help="most tokens of a sample (default: %(default)s)",
    )
    evaluate.add_argument(
        "--reference",
        type=as_path,
        metavar="FILE",
        help="weights whose losses are the difficulty of tokens, .safetensors (default: the rarity"
        " of the token)",
    )
    evaluate.add_argument(
        "--human-eval",
        action="store_true",
        help="evaluate on HumanEval too; generated programs are run, in a sandbox of bubblewrap",
    )
    evaluate.add_argument(
        "--out",
        type=as_path,
        metavar="FILE",
        help="JSON file of the result (default: evaluation.json in FOLDER)",
    )


def _add_compare(actions: Any) -> None:
    compare = add_command(
        actions,
        "compare",
        compare_command,
        "Compare methods and controls over seeds at equal FLOPs; the same command resumes.",
    )
    _add_preset(compare)
    compare.add_argument(
        "--out",
        type=as_path,
        metavar="FOLDER",
        help="folder of the results (default: runs/wmtp-PRESET)",
    )
    compare.add_argument(
        "--methods", metavar="A,B", help="methods to compare (default: those of the preset)"
    )
    compare.add_argument(
        "--seeds", type=int, metavar="N", help="number of seeds (default: that of the preset)"
    )
    compare.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="number of processes, one core each; 0 uses this process (default: %(default)s)",
    )


def _add_preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        default="quick",
        metavar="CONFIG",
        help="name of the settings: quick, learned, full, or a YAML file (default: %(default)s)",
    )


def train_command(args: argparse.Namespace) -> Result:
    """Train a run, and the reference before it where the method needs one."""
    from dataclasses import replace

    from trainenv.cli.progress import Progress
    from trainenv.compare.suite import check_known
    from trainenv.compare.wmtp import METHODS, config_of, load_preset, train_reference, train_run
    from trainenv.compare.wmtp.methods import NEEDS_REFERENCE
    from trainenv.config.presets import merge, nest

    check_known("method", [args.method], METHODS)
    preset = load_preset(args.preset)
    changes: Mapping[str, Any] = preset.run
    for key, value in overrides_of(args.set).items():
        changes = merge(changes, nest(key.split("."), value))
    preset = replace(preset, run=changes)
    folder = args.out or Path("runs") / f"wmtp-{args.method}"
    reference = args.reference
    if reference is not None and args.method not in NEEDS_REFERENCE:
        raise UserError(
            f"--reference goes with {' or '.join(NEEDS_REFERENCE)}, found {args.method}; leave it"
            " out"
        )
    # Refuse a mistake in the settings before the reference is trained.
    config = config_of("uniform", changes, seed=args.seed)
    reference_flops = 0.0
    with interruptible() as stop, Progress(args.method, config.steps, quiet=args.json) as progress:
        if args.method in NEEDS_REFERENCE and reference is None:
            progress.say("training the reference on the next token")
            trained = train_reference(
                preset,
                folder.with_name(f"{folder.name}-reference"),
                watch=progress.watch,
                stop=stop,
            )
            if trained is None:
                progress.say("interrupted; resume with the same command")
                return {"command": "wmtp train", "ended": "interrupted"}, INTERRUPTED
            reference, reference_flops = trained
        config = config_of(args.method, changes, seed=args.seed, reference=reference)
        summary = train_run(config, folder, watch=progress.watch, stop=stop)
    progress.table("Run", [summary])
    result = {"command": "wmtp train", **summary, "reference_flops": reference_flops}
    if summary["ended"] == "interrupted":
        progress.say("interrupted; resume with the same command")
        return result, INTERRUPTED
    progress.say(f"evaluate it: trainenv wmtp evaluate {folder}")
    return result, 0


def evaluate_command(args: argparse.Namespace) -> Result:
    """Evaluate a finished run, and write the result next to it."""
    from rich.console import Console

    from trainenv.compare.cells import write_json
    from trainenv.compare.wmtp import EVALUATION, EvaluationSettings, evaluate_run
    from trainenv.compare.wmtp.evaluation import read_run
    from trainenv.training.objectives import exported_model

    ks = args.k or [k for k in (1, 10, 100) if k <= args.samples]
    settings = EvaluationSettings(
        samples=args.samples, ks=tuple(ks), tasks=args.tasks, max_tokens=args.max_tokens
    )
    sandbox = None
    if args.human_eval:
        from trainenv.evaluation import Bubblewrap

        sandbox = Bubblewrap()
    run = read_run(args.folder)
    reference = None
    if args.reference is not None:
        reference = exported_model(args.reference, run.model)
    found = evaluate_run(run, settings, reference=reference, sandbox=sandbox)
    path = args.out or args.folder / EVALUATION
    write_json(path, found)
    console = Console(quiet=args.json, highlight=False)
    for name, share in _shares(found).items():
        console.print(f"{name}: {share['value']:.3f} ({share['low']:.3f} to {share['high']:.3f})")
    if drafts := found["drafting"]:
        console.print(
            f"drafting by its heads: {_percent(drafts['acceptance'])} of the drafted tokens stay,"
            f" {_number(drafts['tokens_per_call'])} tokens a call, {_number(drafts['speed_up'])} ×"
            " the speed"
        )
    console.print(f"result: {path}", markup=False, soft_wrap=True)
    return {"command": "wmtp evaluate", "folder": str(args.folder), "file": str(path), **found}, 0


def _shares(found: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    shares = {"exact match": found["exact_match"]}
    shares |= {f"pass@{k}": share for k, share in found["pass_at"].items()}
    for k, share in found.get("human_eval", {}).get("pass_at", {}).items():
        shares[f"HumanEval pass@{k}"] = share
    return shares


def compare_command(args: argparse.Namespace) -> Result:
    """Train the cells that are not there yet, and write the table and the page."""
    from trainenv.cli.progress import ProgressLine
    from trainenv.compare.wmtp import check_folder, compare, load_preset
    from trainenv.report import write_report

    if args.workers < 0:
        raise UserError(f"--workers must be 0 (in this process) or more, found {args.workers}")
    methods = None
    if args.methods is not None:
        methods = [name.strip() for name in args.methods.split(",") if name.strip()]
    preset = load_preset(args.preset).select(methods=methods, seeds=args.seeds)
    folder = args.out or Path("runs") / f"wmtp-{preset.name}"
    check_folder(folder, preset)
    total = preset.seeds * len(preset.methods)
    with interruptible() as stop, ProgressLine("wmtp", total, quiet=args.json, lines=20) as line:

        def progress(row: Mapping[str, Any], done: int, total: int) -> None:
            if row["error"]:
                line.err.print(
                    f"{row['method']}, seed {row['seed']}, failed: {row['error']}", markup=False
                )
            note = f"{row['method']}, seed {row['seed']}"
            line.update(done, total, note=note, line=f"{done} of {total} cells, {note}")

        line.say(f"{len(preset.methods)} methods × {preset.seeds} seeds: {total} cells in {folder}")
        found = compare(folder, preset, workers=args.workers, progress=progress, stop=stop)
    line.out.print(_table(found))
    for verdict in found["verdicts"]:
        line.say(_verdict(verdict))
    page = write_report(folder)
    result = {
        "command": "wmtp compare",
        "folder": str(folder),
        "report": str(page),
        **{key: value for key, value in found.items() if key != "rows"},
    }
    if not found["finished"]:
        line.say("interrupted; resume with the same command")
        return result, INTERRUPTED
    line.say(f"report: {page}")
    return result, 0


def _table(found: Mapping[str, Any]) -> Any:
    """Return the table for the screen; the page has all metrics."""
    from rich.box import SIMPLE
    from rich.table import Table

    methods = found["preset"]["methods"]
    made = Table(
        title="Mean over seeds",
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        padding=(0, 0, 0, 1),
    )
    made.add_column("", no_wrap=True, min_width=max(map(len, _SHOWN)))
    for method in methods:
        made.add_column(method, justify="right")
    for name in _SHOWN:
        if metric := found["metrics"].get(name):
            values = [_short(metric["methods"][method]["value"]) for method in methods]
            made.add_row(name.replace("_", " "), *values)
    return made


def _verdict(verdict: Mapping[str, Any]) -> str:
    from trainenv.report.wmtp import sentence

    return sentence(verdict)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}"


def _short(value: float | None) -> str:
    """Write a number in at most seven characters."""
    if value is None:
        return "–"
    return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.0f} %"
