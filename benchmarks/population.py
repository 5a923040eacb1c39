"""The loop at one run's budget against population based training whose every member has that budget: a quarter of its compute.

    python benchmarks/population.py --json

`trainenv compare` puts methods at equal compute, so there the four members share one budget. Here
each member trains as long as the loop does, and the population costs four times as much. Printed:
paired differences of ln final validation loss, loop less population, with a 95 % bootstrap interval
over scenarios and seeds, and both methods' FLOPs.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

from trainenv.compare import load_suite
from trainenv.compare.bootstrap import figure

# Scripts beside this one are named like packages.
from trainenv.composition.methods import METHODS
from trainenv.config.schema import RunConfig

SCENARIOS = ("calm", "lr-3x", "lr-10x", "lr-third", "rare-tokens", "unclipped-bursts")
MEMBERS = 4


def cell(job: tuple[str, int]) -> dict[str, Any]:
    """Both methods on one run."""
    import torch

    torch.set_num_threads(1)
    name, seed = job
    config = next(
        scenario for scenario in load_suite("full").scenarios if scenario.name == name
    ).config(seed)
    whole = {"steps": MEMBERS * config.steps, "schedule.warmup": MEMBERS * config.schedule.warmup}
    found: dict[str, Any] = {"scenario": name, "seed": seed}
    with tempfile.TemporaryDirectory() as root:
        for method, own in (("branching", config), ("pbt", RunConfig.load(config, whole))):
            summary = METHODS[method](
                own, Path(root) / method, lambda run, window: None, lambda: False
            )
            loss = summary["final_validation_loss"] or summary["uniform_loss"]
            found[method] = {"log_loss": math.log(loss), "flops": sum(summary["flops"].values())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    jobs = [(name, seed) for seed in range(args.seeds) for name in SCENARIOS]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        cells = pool.map(cell, jobs, chunksize=1)
    differences = [one["branching"]["log_loss"] - one["pbt"]["log_loss"] for one in cells]
    found = figure(differences, [one["scenario"] for one in cells])
    compute = sum(one["branching"]["flops"] for one in cells) / sum(
        one["pbt"]["flops"] for one in cells
    )
    result = {
        "difference": found.value,
        "interval": [found.low, found.high],
        "compute": compute,
        "scenarios": {
            name: sum(d for one, d in zip(cells, differences) if one["scenario"] == name)
            / args.seeds
            for name in SCENARIOS
        },
        "cells": cells,
    }
    print(
        json.dumps(result)
        if args.json
        else json.dumps({k: v for k, v in result.items() if k != "cells"}, indent=1)
    )


if __name__ == "__main__":
    main()
