"""`trainenv replay`: train the branches of a recorded decision again, and say whether the same comes of it."""

from __future__ import annotations

import argparse
import math

from trainenv.cli.options import Result, overrides_of


def replay_command(args: argparse.Namespace) -> Result:
    """Exit code 0 where the record and its repetition agree, 1 where they do not."""
    from rich.console import Console
    from rich.table import Table

    from trainenv.report.drawing.formatting import sequence
    from trainenv.verification.replay import Replay

    console = Console(quiet=args.json, highlight=False)
    replay = Replay.of(args.folder, args.step, overrides_of(args.set))
    table = Table(
        title=f"Decision {args.step}, then and now", title_justify="left", title_style="bold"
    )
    for name in ("branch", "then", "now"):
        table.add_column(name)
    for name in ("Δ then", "Δ now", "losses off by"):
        table.add_column(name, justify="right")
    for place, row in enumerate(replay.rows):
        name = "control" if place == 0 else sequence(row.interventions)
        table.add_row(name, *row.fates, *(_signed(delta) for delta in row.deltas), _off(row.off))
    console.print(table)
    console.print(
        f"{'agrees' if replay.agrees else 'DIFFERS'}: {replay.reason}", markup=False, soft_wrap=True
    )
    branches = [
        {
            "interventions": list(row.interventions),
            "fate": dict(zip(("then", "now"), row.fates)),
            "delta": {
                when: delta if math.isfinite(delta) else None
                for when, delta in zip(("then", "now"), row.deltas)
            },
            "off": row.off if math.isfinite(row.off) else None,
        }
        for row in replay.rows
    ]
    result = {
        "command": "replay",
        "folder": str(args.folder),
        "step": args.step,
        "agrees": replay.agrees,
        "reason": replay.reason,
        "off": replay.off if math.isfinite(replay.off) else None,
        "numerics": list(replay.numerics),
        "accepted": dict(zip(("then", "now"), replay.accepted)),
        "fingerprint": dict(zip(("then", "now"), replay.fingerprints)),
        "branches": branches,
    }
    return result, 0 if replay.agrees else 1


def _signed(delta: float) -> str:
    return f"{delta:+.4f}" if math.isfinite(delta) else "–"


def _off(off: float) -> str:
    if off == 0:
        return "0, to the bit"
    return f"{off:.2g}" if math.isfinite(off) else "not alike"
