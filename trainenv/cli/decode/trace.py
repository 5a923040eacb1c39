"""`trainenv decode trace`: record what both models of each pair think of texts, and time them."""

from __future__ import annotations

import argparse
from typing import Any

from trainenv.cli.decode.options import add_pairs
from trainenv.cli.options import INTERRUPTED, Result, interruptible
from trainenv.types import UserError


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
    from trainenv.config.decoding import PairsConfig
    from trainenv.decoding.pairs import record_traces

    config = PairsConfig.load(args.pairs)
    tasks = [f"{pair.name}--{corpus.name}" for pair in config.pairs for corpus in config.corpora]
    total = len(tasks) * config.trace.rows
    result: dict[str, Any] = {"command": "decode trace", "folder": str(args.out)}
    with interruptible() as stop, ProgressLine("trace", total, quiet=args.json) as screen:

        def show(task: str, done: int, rows: int) -> None:
            place = tasks.index(task) * config.trace.rows + done
            line = f"{task}: {done} of {rows} texts"
            screen.update(place, total, note=line, line=line)

        try:
            recorded = record_traces(config, args.out, watch=show, stop=stop)
        except UserError:
            if not stop():
                raise
            screen.say("interrupted; resume with the same command")
            return {**result, "finished": False}, INTERRUPTED
        screen.say(f"{len(recorded)} traces in {args.out / 'traces'}")
        found = [
            {
                "task": task.name,
                "acceptance": task.trace.acceptance,
                "cost_ratio": task.costs.ratio,
            }
            for task in recorded
        ]
        for one in found:
            screen.say(
                f"{one['task']}: acceptance {one['acceptance']:.3f},"
                f" a draft step costs {one['cost_ratio']:.2f} of a target call"
            )
    return {**result, "finished": True, "tasks": found}, 0
