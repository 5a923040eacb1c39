"""`trainenv decode`: train model pairs, trace them, and find the thresholds that decode fastest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainenv.cli.options import (
    INTERRUPTED,
    Result,
    add_actions,
    add_command,
    as_path,
    interruptible,
)
from trainenv.types import UserError

if TYPE_CHECKING:
    from trainenv.agents.thresholds.evaluation import Plan

_RULES = ("exact", "lossy", "pipelined")
_COLUMNS = ("regret", "speedup", "acceptance", "distance", "evaluations")


def add_decode(commands: Any) -> None:
    """Add the command and its actions."""
    actions = add_actions(
        commands, "decode", "Find the thresholds of speculative decoding for model pairs."
    )
    _add_tune(actions)
    _add_evaluate(actions)


def _add_tune(actions: Any) -> None:
    tuning = add_command(
        actions,
        "tune",
        tune_command,
        "Search for the fastest settings of one pair on one corpus; resumable.",
    )
    tuning.add_argument(
        "folder", type=as_path, metavar="FOLDER", help="folder with traces and costs"
    )
    tuning.add_argument("--pair", required=True, metavar="NAME", help="name of the model pair")
    tuning.add_argument("--corpus", required=True, metavar="NAME", help="name of the corpus")
    tuning.add_argument(
        "--method",
        default=None,
        metavar="NAME",
        help="method of the search: grid, random, cma-es, ucb, tpe or ppo (default: ucb)",
    )
    tuning.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)"
    )
    _add_plan(tuning)
    _add_out(tuning, "runs/decode-tune")


def _add_evaluate(actions: Any) -> None:
    evaluating = add_command(
        actions,
        "evaluate",
        evaluate_command,
        "Compare all methods on texts, pairs and corpora that were held out; resumable.",
    )
    evaluating.add_argument(
        "folder", type=as_path, metavar="FOLDER", help="folder with traces and costs"
    )
    evaluating.add_argument(
        "--methods", metavar="A,B", help="methods without training over pairs (default: all)"
    )
    evaluating.add_argument(
        "--general", metavar="A,B", help="policies trained over pairs (default: all)"
    )
    evaluating.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="number of splits of the texts (default: %(default)s)",
    )
    _add_plan(evaluating)
    _add_out(evaluating, "runs/decode-evaluate")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget",
        type=int,
        default=64,
        metavar="N",
        help="number of evaluations of a search (default: %(default)s)",
    )
    parser.add_argument(
        "--rule",
        default="exact",
        metavar="RULE",
        help="rule of verification: exact, lossy or pipelined (default: %(default)s)",
    )
    parser.add_argument(
        "--max-distance",
        type=float,
        default=0.02,
        metavar="D",
        help="total-variation distance to the target that a lossy rule may cost"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--k",
        type=int,
        default=16,
        metavar="K",
        help="greatest number of drafted tokens, 1 to 16 (default: %(default)s)",
    )


def _add_out(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--out",
        type=as_path,
        default=Path(default),
        metavar="FOLDER",
        help="folder of the results (default: %(default)s)",
    )


def tune_command(args: argparse.Namespace) -> Result:
    """Search for settings, and write the report."""
    from trainenv.agents.thresholds.sources import read_sources
    from trainenv.agents.thresholds.tuning import DEFAULT, Tuning
    from trainenv.cli.progress import ProgressLine
    from trainenv.report import write_report

    search = Tuning(method=args.method or DEFAULT, seed=args.seed, plan=_plan(args, seeds=1))
    source = read_sources(args.folder, pairs=[args.pair], corpora=[args.corpus])[0]
    with (
        interruptible() as stop,
        ProgressLine("tune", args.budget, quiet=args.json) as screen,
    ):

        def show(done: int, best: float) -> None:
            note = f"best {best:.3f} × as fast"
            screen.update(done, args.budget, note=note, line=f"{done} evaluations, {note}")

        found = search.run(source, args.out, progress=show, stop=stop)
        report = write_report(args.out)
        best = found["best"]
        settings = ", ".join(f"{name} {value:.3g}" for name, value in best["values"].items())
        if not found["drafts"]:
            settings = f"the target alone; the best draft ({settings}) is slower"
        screen.say(f"{source.name}: {settings}")
        screen.say(
            f"{best['score']:.3f} on the texts of the search, "
            f"{found['held_out']['score']:.3f} on others; distance to the target "
            f"{found['held_out']['distance']:.4f}"
        )
        screen.say(f"report: {report}")
        if not found["finished"]:
            screen.say("interrupted; resume with the same command")
    shown = {key: found[key] for key in found if key not in ("tasks", "methods", "rows")}
    result = {"command": "decode tune", "folder": str(args.out), "report": str(report), **shown}
    if not found["finished"]:
        return result, INTERRUPTED
    return result, 0


def evaluate_command(args: argparse.Namespace) -> Result:
    """Compare methods, show a table, and write the report."""
    from trainenv.agents.thresholds.evaluation import evaluate
    from trainenv.agents.thresholds.sources import read_sources
    from trainenv.cli.progress import ProgressLine
    from trainenv.report import write_report
    from trainenv.report.decoding import DECODING
    from trainenv.tools.atomic_files import write_json

    plan = _plan(args, seeds=args.seeds)
    sources = read_sources(args.folder)
    with interruptible() as stop, ProgressLine("evaluate", 1, quiet=args.json) as screen:

        def show(done: int, total: int, name: str) -> None:
            screen.update(done, total, note=name, line=f"{done} of {total}, {name}")

        found = evaluate(sources, plan, args.out, progress=show, stop=stop)
        write_json(args.out / DECODING, found)
        report = write_report(args.out)
        screen.out.print(_table(found))
        screen.say(f"report: {report}")
        if not found["finished"]:
            screen.say("interrupted; resume with the same command")
    result = {
        "command": "decode evaluate",
        "folder": str(args.out),
        "report": str(report),
        "finished": found["finished"],
        "methods": found["methods"],
    }
    if not found["finished"]:
        return result, INTERRUPTED
    return result, 0


def _plan(args: argparse.Namespace, *, seeds: int) -> Plan:
    """Return what is searched or evaluated, from the options."""
    from trainenv.agents.thresholds.evaluation import GENERAL, Plan
    from trainenv.agents.thresholds.strategies import STRATEGIES
    from trainenv.tools.checks import choice

    choice("--rule", args.rule, _RULES)
    return Plan(
        methods=_names(getattr(args, "methods", None), tuple(STRATEGIES)),
        general=_names(getattr(args, "general", None), GENERAL),
        budget=args.budget,
        seeds=seeds,
        rule=args.rule,
        allowed_distance=args.max_distance,
        k=args.k,
    )


def _names(listed: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Split `a,b` into names."""
    if listed is None:
        return default
    names = tuple(name.strip() for name in listed.split(",") if name.strip())
    if not names and listed.strip():
        raise UserError(f"expected names with commas between, found {listed!r}; name at least one")
    return names


def _table(found: dict[str, Any]) -> Any:
    """Return the table of the methods, the least regret first."""
    from rich.table import Table

    table = Table(title="means over pairs, corpora and seeds", title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for one in sorted(found["methods"], key=lambda one: float(one["regret"]["value"])):
        table.add_row(one["method"], *(f"{one[name]['value']:.3f}" for name in _COLUMNS))
    return table
