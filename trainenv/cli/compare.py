"""`trainenv compare`: methods on test scenarios, each with the same FLOPs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from trainenv.cli.options import INTERRUPTED, Result, interruptible
from trainenv.types import UserError


def compare_command(args: argparse.Namespace) -> Result:
    """Play the missing cells of a suite, and show the results."""
    from trainenv.cli.comparison_screen import Screen, minutes
    from trainenv.compare import compare, load_suite
    from trainenv.compare.cells import measure_cell
    from trainenv.compare.runner import expected_seconds
    from trainenv.compare.suite import check_known
    from trainenv.composition.methods import METHODS

    if args.workers < 0:
        raise UserError(f"--workers must be 0 (in this process) or more, found {args.workers}")
    chosen = _names("methods", args.methods)
    check_known("method", chosen or (), METHODS)
    suite = load_suite(args.suite).select(
        methods=chosen, scenarios=_names("scenarios", args.scenarios), seeds=args.seeds
    )
    folder = args.out or Path("runs") / f"compare-{suite.name}"
    total = len(suite.scenarios) * suite.seeds * len(suite.played)
    with interruptible() as stop, Screen("compare", total, quiet=args.json) as screen:
        seconds = expected_seconds(folder, suite, args.workers)
        screen.say(
            f"{len(suite.scenarios)} scenarios × {suite.seeds} seeds × {len(suite.played)} "
            f"methods: {total} cells in {folder}, about {minutes(seconds)} with "
            f"{args.workers or 1} process(es)"
        )
        found = compare(
            folder,
            suite,
            METHODS,
            measure_cell,
            workers=args.workers,
            keep=args.keep,
            progress=screen.progress,
            stop=stop,
        )
    screen.tables(found)
    result = {
        "command": "compare",
        "folder": str(folder),
        **{key: found[key] for key in found if key != "rows"},
    }
    if not found["finished"]:
        screen.say("interrupted; the same command continues from there")
        return result, INTERRUPTED
    screen.say(f"all of it: {folder / 'results.json'}")
    return result, 0


def _names(what: str, listed: str | None) -> Sequence[str] | None:
    """Return the names in `a,b`; None if the option was left out."""
    if listed is None:
        return None
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if not names:
        raise UserError(
            f"a comparison needs {what}, found none in {listed!r}; name at least one, or leave the "
            "option out"
        )
    return names
