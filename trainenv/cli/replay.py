"""`trainenv replay`: repeat a recorded decision and compare the results."""

from __future__ import annotations

import argparse
import math
from typing import Any

from trainenv.cli.options import Result, add_command, add_overrides, as_path, overrides_of

_WHEN = ("then", "now")


def add_replay(commands: Any) -> None:
    """Add the command."""
    replay = add_command(
        commands,
        "replay",
        replay_command,
        "Train the branches of a recorded decision again; exit code 1 if the results differ.",
    )
    replay.add_argument("folder", type=as_path, metavar="FOLDER", help="folder of a run")
    replay.add_argument(
        "step",
        metavar="STEP",
        help="step of the decision; 500-2 is the second decision at step 500",
    )
    add_overrides(replay, "device=cpu")


def replay_command(args: argparse.Namespace) -> Result:
    """Repeat a decision; the exit code is 0 if record and repetition agree, else 1."""
    from rich.console import Console
    from rich.table import Table

    from trainenv.report.drawing.formatting import sequence
    from trainenv.verification.replay import Replay

    console = Console(quiet=args.json, highlight=False)
    replay = Replay.of(args.folder, args.step, overrides_of(args.set))
    table = Table(
        title=f"Decision {args.step}, then and now", title_justify="left", title_style="bold"
    )
    for name in ("branch", *_WHEN):
        table.add_column(name)
    for name in ("Δ then", "Δ now", "losses differ by"):
        table.add_column(name, justify="right")
    for place, row in enumerate(replay.rows):
        name = "control"
        if place:
            name = sequence(row.interventions)
        table.add_row(name, *row.fates, *(_signed(delta) for delta in row.deltas), _off(row.off))
    console.print(table)
    answer = {True: "agrees", False: "DIFFERS"}[replay.agrees]
    console.print(f"{answer}: {replay.reason}", markup=False, soft_wrap=True)
    branches = [
        {
            "interventions": list(row.interventions),
            "fate": dict(zip(_WHEN, row.fates)),
            "delta": dict(zip(_WHEN, map(_finite, row.deltas))),
            "off": _finite(row.off),
        }
        for row in replay.rows
    ]
    result = {
        "command": "replay",
        "folder": str(args.folder),
        "step": args.step,
        "agrees": replay.agrees,
        "reason": replay.reason,
        "off": _finite(replay.off),
        "numerics": list(replay.numerics),
        "accepted": dict(zip(_WHEN, replay.accepted)),
        "fingerprint": dict(zip(_WHEN, replay.fingerprints)),
        "branches": branches,
    }
    return result, int(not replay.agrees)


def _finite(value: float) -> float | None:
    """Return a number as a JSON value; None if it is not finite."""
    if math.isfinite(value):
        return value
    return None


def _signed(delta: float) -> str:
    if math.isfinite(delta):
        return f"{delta:+.4f}"
    return "–"


def _off(off: float) -> str:
    if off == 0:
        return "0, bit-exact"
    if math.isfinite(off):
        return f"{off:.2g}"
    return "not comparable"
