"""`trainenv compare`: methods × trunks at equal compute."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from trainenv.cli.options import INTERRUPTED, Result, interruptible
from trainenv.types import UserError


def compare_command(args: argparse.Namespace) -> Result:
    """Play what of a suite is not there yet, and show what was found."""
    from trainenv.cli.comparison_screen import Screen, minutes
    from trainenv.compare import compare, load_suite
    from trainenv.compare.measuring import measure_cell
    from trainenv.compare.runner import expected_seconds
    from trainenv.compare.suite import check_known
    from trainenv.composition.methods import METHODS

    if args.workers < 0:
        raise UserError(f"--workers must be 0 (in this process) or more, found {args.workers}")
    chosen = _names("methods", args.methods)
    check_known("method", chosen or (), METHODS)
    suite = load_suite(args.suite).select(
        methods=chosen, trunks=_names("trunks", args.trunks), seeds=args.seeds
    )
    folder = args.out or Path("runs") / f"compare-{suite.name}"
    total = len(suite.trunks) * suite.seeds * len(suite.played)
    with interruptible() as stop, Screen("compare", total, quiet=args.json) as screen:
        seconds = expected_seconds(folder, suite, args.workers)
        screen.say(
            f"{len(suite.trunks)} trunks × {suite.seeds} seeds × {len(suite.played)} methods: {total} cells in {folder}, "
            f"about {minutes(seconds)} with {args.workers or 1} process(es)"
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
        screen.say("interrupted; the same command goes on from there")
        return result, INTERRUPTED
    screen.say(f"all of it: {folder / 'results.json'}")
    return result, 0


def _names(what: str, listed: str | None) -> Sequence[str] | None:
    """`a,b` as names; None where nothing was listed."""
    if listed is None:
        return None
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if not names:
        raise UserError(
            f"a comparison needs {what}, found none in {listed!r}; name at least one, or leave the option out"
        )
    return names
