"""`trainenv decode trace`: record what both models of each pair think of texts, and time them."""

from __future__ import annotations

import argparse
from typing import Any

from trainenv.cli.decode.options import add_pairs
from trainenv.cli.options import INTERRUPTED, Result, interruptible


def add_trace(actions: Any) -> None:
    """Add the action."""
    add_pairs(
        actions,
        "trace",
        trace_command,
        "Record what both models of each pair think of texts, and time them; resumable.",
    )


def trace_command(args: argparse.Namespace) -> Result:
    """Record the traces and costs that are missing."""
    from trainenv.cli.progress import ProgressLine
    from trainenv.composition.pair_traces import record_traces
    from trainenv.config.decoding import PairsConfig

    config = PairsConfig.load(args.config)
    total = len(config.pairs) * len(config.corpora)
    with interruptible() as stop, ProgressLine("trace", total, quiet=args.json) as screen:

        def show(done: int, total: int, name: str) -> None:
            screen.update(done, total, note=name, line=f"{done} of {total} traces, {name}")

        finished = record_traces(config, args.out, watch=show, stop=stop)
        screen.say(f"traces of {len(config.pairs)} pairs in {args.out / 'traces'}")
        if not finished:
            screen.say("interrupted; resume with the same command")
    result = {"command": "decode trace", "folder": str(args.out), "finished": finished}
    if not finished:
        return result, INTERRUPTED
    return {**result, "traces": total}, 0
