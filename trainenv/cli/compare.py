"""`trainenv compare`: compare methods on test scenarios, each with the same compute."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainenv.cli.options import (
    INTERRUPTED,
    Result,
    add_command,
    add_executor,
    as_path,
    interruptible,
)
from trainenv.types import UserError


def add_compare(commands: Any) -> None:
    """Add the command."""
    compare = add_command(
        commands,
        "compare",
        compare_command,
        "Compare training methods on test scenarios, healthy and faulty, with the same compute.",
    )
    compare.add_argument(
        "suite",
        nargs="*",
        metavar="CONFIG",
        help="suite to train: quick, headroom, sizes, full, or a YAML file (default: quick); merge"
        " CONFIG joins the shards of a suite",
    )
    compare.add_argument(
        "--out",
        type=as_path,
        metavar="FOLDER",
        help="folder of the results (default: runs/compare-NAME)",
    )
    compare.add_argument(
        "--methods",
        metavar="A,B",
        help="methods to compare, also of your own as my_module:my_method (default: those of"
        " CONFIG)",
    )
    compare.add_argument(
        "--scenarios", metavar="A,B", help="scenarios to train (default: all of CONFIG)"
    )
    # The old name of --scenarios, for one version.
    compare.add_argument("--trunks", dest="scenarios", help=argparse.SUPPRESS)
    compare.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="number of seeds per scenario (default: that of CONFIG)",
    )
    compare.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="number of processes, one core each; 0 uses this process (default: %(default)s)",
    )
    add_executor(compare)
    compare.add_argument(
        "--shard",
        metavar="I/N",
        help="train the I-th of N shares of the cells, from 1/N on, into a folder of its own",
    )
    compare.add_argument(
        "--keep", action="store_true", help="keep the folders of all runs (default: delete them)"
    )


def compare_command(args: argparse.Namespace) -> Result:
    """Train the cells of a suite that are not there yet, and show the results."""
    from trainenv.cli.comparison_screen import Screen, minutes
    from trainenv.compare import compare, load_suite
    from trainenv.compare.cells import measure_cell
    from trainenv.compare.merge import merge
    from trainenv.compare.runner import expected_seconds
    from trainenv.compare.shard import WHOLE, Shard
    from trainenv.composition.named_methods import find_methods
    from trainenv.distributed.executors import check_executor

    if args.workers < 0:
        raise UserError(f"--workers must be 0 (in this process) or more, found {args.workers}")
    check_executor(args.executor, args.workers)
    chosen = _names("methods", args.methods)
    find_methods(chosen or ())
    words = list(args.suite)
    merges = words[:1] == ["merge"]
    suites = words[1:] if merges else words
    if len(suites) > 1:
        raise UserError(
            f"compare takes one suite, found {', '.join(suites)}; call it for each of them"
        )
    if merges and args.shard:
        raise UserError(
            f"merge joins all shards, found --shard {args.shard}; leave one of them out"
        )
    suite = load_suite(*suites or ["quick"]).select(
        methods=chosen, scenarios=_names("scenarios", args.scenarios), seeds=args.seeds
    )
    methods = find_methods(suite.played)
    folder = args.out or Path("runs") / f"compare-{suite.name}"
    total = len(suite.scenarios) * suite.seeds * len(suite.played)
    shard = Shard.parse(args.shard) if args.shard else WHOLE
    with interruptible() as stop, Screen("compare", total, quiet=args.json) as screen:
        if merges:
            found = merge(folder, suite)
        else:
            folder = shard.folder(folder)
            seconds = expected_seconds(folder, suite, args.workers, shard)
            here = f" of {args.shard}" if args.shard else ""
            screen.say(
                f"{len(suite.scenarios)} scenarios × {suite.seeds} seeds × {len(suite.played)} "
                f"methods: {len(shard.of(range(total)))} cells{here} in {folder},"
                f" about {minutes(seconds)} with {args.workers or 1} process(es)"
            )
            if references := [name for name in suite.played if name not in suite.methods]:
                screen.say(
                    f"{', '.join(references)}: references that are chosen in hindsight; they do not"
                    " compete, and are in no table of methods"
                )
            found = compare(
                folder,
                suite,
                methods,
                measure_cell,
                workers=args.workers,
                executor=args.executor,
                keep=args.keep,
                shard=shard,
                progress=screen.progress,
                stop=stop,
            )
    screen.tables(found)
    result = {
        "command": "compare",
        "folder": str(folder),
        **{key: found[key] for key in found if key != "rows"},
    }
    if merges and not found["finished"]:
        there = found["cells"]["there"]
        screen.say(f"{total - there} of {total} cells are missing; merge again when they are there")
        return result, 1
    if not found["finished"]:
        screen.say("interrupted; resume with the same command")
        return result, INTERRUPTED
    screen.say(f"all results: {folder / 'results.json'}; as a page: trainenv report {folder}")
    if found["cells"]["failed"] == found["cells"]["there"]:
        screen.say("nothing was compared: every cell failed; mend that, and call it again")
        return result, 1
    return result, 0


def _names(what: str, listed: str | None) -> Sequence[str] | None:
    """Split `a,b` into names; None if the option was not given."""
    if listed is None:
        return None
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if not names:
        raise UserError(
            f"a comparison needs {what}, found none in {listed!r}; name at least one, or leave the"
            " option out"
        )
    return names
