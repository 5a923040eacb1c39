"""What the range test at the start of a run is worth: warm-ups × learning rates, with it and without, to the end.

    python benchmarks/range_test.py --json

Nothing but the trigger `warmup` is on, so all that differs is what it asks for, what real steps
measured, and what it costs. Printed per warm-up and learning rate, over scenarios and seeds: what
was accepted of what was asked for, and Δ ln final validation loss at equal compute. The rate that
suits these runs is × 1: a test that works lowers those above it, raises those below, and leaves it
alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from trainenv.compare import load_suite

# Scripts beside this one are named like packages.
from trainenv.composition.methods import METHODS
from trainenv.config.schema import RunConfig
from trainenv.records.decision_files import accepted_branch, read_decisions

WARMUPS, FACTORS = (15, 30, 60, 120), (0.1, 0.3, 1.0, 3.0, 10.0)
LENGTH = 20  # warm-ups a run


def cell(job: tuple[str, int, float, int]) -> dict[str, Any]:
    """A run with the range test and without."""
    import torch

    torch.set_num_threads(1)
    name, warmup, factor, seed = job
    config = next(
        scenario for scenario in load_suite("full").scenarios if scenario.name == name
    ).config(seed)
    changes = {
        "steps": LENGTH * warmup,
        "schedule.warmup": warmup,
        "optimizer.lr": config.optimizer.lr * factor,
        "validation.every": 0,
        "branching.triggers": ["warmup"],
    }
    config = RunConfig.load(config, changes)
    with tempfile.TemporaryDirectory() as root:
        losses = {}
        for method in ("branching", "nothing"):
            summary = METHODS[method](
                config, Path(root) / method, lambda run, window: None, lambda: False
            )
            losses[method] = math.log(summary["final_validation_loss"] or summary["uniform_loss"])
        decisions = read_decisions(Path(root) / "branching")
    asked = [
        {
            "step": one["step"],
            "scale": one["branches"][1]["interventions"][0]["lr_scale"],
            "accepted": bool(accepted_branch(one)),
        }
        for one in decisions
    ]
    return {
        "scenario": name,
        "warmup": warmup,
        "factor": factor,
        "seed": seed,
        "asked": asked,
        "difference": losses["branching"] - losses["nothing"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenarios", nargs="+", default=["calm", "calm-subwords"])
    parser.add_argument("--warmups", type=int, nargs="+", default=list(WARMUPS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    jobs = list(itertools.product(args.scenarios, args.warmups, FACTORS, range(args.seeds)))
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        cells = pool.map(cell, jobs, chunksize=1)
    rows = [
        _row([c for c in cells if (c["warmup"], c["factor"]) == key])
        for key in itertools.product(args.warmups, FACTORS)
    ]
    if args.json:
        print(json.dumps({"rows": rows, "cells": cells}))
        return
    print(
        f"{'warm-up':>8} {'LR ×':>6} {'lower':>9} {'higher':>9} {'Δ ln final loss':>16}   accepted "
        f"of asked, {len(cells)} runs"
    )
    for row in rows:
        lower, higher = (f"{row[side][0]}/{row[side][1]}" for side in ("lower", "higher"))
        print(
            f"{row['warmup']:8d} {row['factor']:6g} {lower:>9} {higher:>9} "
            f"{row['difference']:+16.4f}"
        )


def _row(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """One warm-up and learning rate over scenarios and seeds."""
    asked = [one for cell in cells for one in cell["asked"]]
    sides = {
        "lower": [one for one in asked if one["scale"] < 1],
        "higher": [one for one in asked if one["scale"] > 1],
    }
    counts = {
        side: [sum(one["accepted"] for one in ones), len(ones)] for side, ones in sides.items()
    }
    return {
        "warmup": cells[0]["warmup"],
        "factor": cells[0]["factor"],
        **counts,
        "difference": fmean(cell["difference"] for cell in cells),
    }


if __name__ == "__main__":
    main()
