"""The critic's temperature, its λ and the length of its pretraining, one changed at a time.

Each variant of the critic is trained as in a preset of `trainenv wmtp compare`, with the same FLOPs
and seeds. Differences against the critic as it is are paired by seed, with 95 % intervals of
Student's t; `ranked` is the share of test tasks whose right solution ends with a higher value than
the wrong one, 0.5 by chance.

    python benchmarks/wmtp_ablations.py --json

An interrupted run resumes with the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainenv.compare.wmtp import compare, config_of, flops_of, load_preset
from trainenv.compare.wmtp.preset import Preset
from trainenv.compare.wmtp.table import figure
from trainenv.config.presets import merge
from trainenv.tools.json_lines import number_or_nan
from trainenv.tools.paths import expanded

MEASURES = (
    "exact_match",
    "validation_loss",
    "effective_sample_size",
    "advantage_deviation",
    "value_explained_variance",
    "ranked",
)


def variants(preset: Preset) -> dict[str, dict[str, Any]]:
    """Return the options of the critic by the name of the variant."""
    steps = config_of(
        "critic", preset.run, seed=0, budget=flops_of(config_of("uniform", preset.run, seed=0))
    ).steps
    return {
        "critic": {},
        "beta 0.3": {"beta": 0.3},
        "beta 0.1": {"beta": 0.1},
        "whitened": {"whiten": True},
        "lambda 0.5": {"lam": 0.5},
        "lambda 0.95": {"lam": 0.95},
        "no pretraining": {"value_steps": 0},
        "pretraining × 2": {"value_steps": steps // 3},
    }


def measured(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures of a cell."""
    found = {name: row.get(name) for name in MEASURES}
    found["exact_match"] = (row.get("exact_match") or {}).get("value")
    found["ranked"] = (row.get("td_errors") or {}).get("ranked")
    return {name: number_or_nan(value) for name, value in found.items()}


def main() -> int:
    """Train what is missing, print the table, and return 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="learned", help="quick, learned, full or a YAML file")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--variants", help="names, with commas between; all by default")
    parser.add_argument("--workers", type=int, default=0, help="number of processes")
    parser.add_argument("--out", default="runs/wmtp-ablations", help="folder of the results")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on the last line"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    preset = load_preset(args.preset).select(methods=("critic",), seeds=args.seeds)
    cells: dict[str, dict[int, dict[str, float]]] = {}
    known = variants(preset)
    asked = [one.strip() for one in (args.variants or ",".join(known)).split(",")]
    if unknown := set(asked) - known.keys():
        parser.error(f"expected variants among {', '.join(known)}, found {', '.join(unknown)}")
    for name, options in known.items():
        if name != "critic" and name not in asked:  # each is compared with the critic
            continue
        changes = {"objective": {"options": {"critic": options}}} if options else {}
        changed = replace(preset, run=merge(preset.run, changes))
        folder = Path(expanded(args.out)) / name.replace(" ", "-")
        rows = compare(folder, changed, workers=args.workers)["rows"]
        cells[name] = {row["seed"]: measured(row) for row in rows if not row["error"]}
    found: dict[str, Any] = {}
    for name, by_seed in cells.items():
        found[name] = {
            measure: figure([one[measure] for one in by_seed.values()]).to_json()
            for measure in MEASURES
        }
        both = [seed for seed in by_seed if seed in cells["critic"]]
        for measure in ("exact_match", "validation_loss"):
            apart = [by_seed[seed][measure] - cells["critic"][seed][measure] for seed in both]
            found[name][f"{measure} against the critic"] = figure(apart).to_json()
        shown = "  ".join(f"{measure} {found[name][measure]['value']:.4f}" for measure in MEASURES)
        change = found[name]["exact_match against the critic"]
        print(f"  {name:16} {shown}  {change}", flush=True)
    if args.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
