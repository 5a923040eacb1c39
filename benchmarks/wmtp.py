"""Weightings of multi-token prediction at equal FLOPs, with both controls and paired seeds.

A preset of `trainenv wmtp compare` is trained: uniform weights, the critic, Rho-1, as many random
tokens, and shuffled weights. Exact match, pass@k, cost and convergence are means over seeds;
differences are paired by seed, with 95 % intervals of Student's t. Self-speculation by the heads is
measured on the same tasks: acceptance, tokens a call, and speed-up.

    python benchmarks/wmtp.py --json
    python benchmarks/wmtp.py --preset full --out runs/wmtp-full

The goal is that critic and Rho-1 are ahead of uniform weights and of their controls, with intervals
clear of zero. An interrupted run resumes with the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainenv.compare.wmtp import compare, load_preset
from trainenv.report import write_report
from trainenv.report.wmtp import sentence
from trainenv.tools.paths import expanded

SHOWN = ("exact_match", "validation_loss", "acceptance", "tokens_per_call", "speed_up")


def progress(row: Mapping[str, Any], done: int, total: int) -> None:
    """Print a line about a cell."""
    error = row["error"] or f"{row['steps']} steps in {row['training_seconds']:.0f} s"
    print(f"  {done} of {total}: {row['method']}, seed {row['seed']}, {error}", flush=True)


def main() -> int:
    """Train what is missing, print the table and the verdicts, and return 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="quick", help="quick, learned, full or a YAML file")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--workers", type=int, default=0, help="number of processes")
    parser.add_argument("--out", default="runs/wmtp-benchmark", help="folder of the results")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on the last line"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    preset = load_preset(args.preset).select(methods=None, seeds=args.seeds)
    folder = Path(expanded(args.out))
    found = compare(folder, preset, workers=args.workers, progress=progress)
    for name, metric in found["metrics"].items():
        if name in SHOWN or name.startswith("pass@"):
            for method, figure in metric["methods"].items():
                if figure["value"] is None:  # a model without further heads drafts nothing
                    continue
                against = metric["against_uniform"].get(method)
                change = ""
                if against and against["low"] is not None:
                    change = (
                        f"  {against['value']:+.4f} ({against['low']:+.4f} to"
                        f" {against['high']:+.4f}) against uniform"
                    )
                print(f"  {name:18} {method:16} {figure['value']:8.4f}{change}")
    for verdict in found["verdicts"]:
        print(f"  {sentence(verdict)}")
    write_report(folder)
    if args.json:
        print(json.dumps({key: value for key, value in found.items() if key != "rows"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
