"""Counterfactual branches: how fast they are made, and how large what they measure is against its noise.

*Throughput*, by width: optimizer steps per core-second over whole trunks with all their branches (validation, restoring, writing
and reading back of telemetry included), and how much a bare `advance` of the same run takes of that time. Times are of the
process (`time.process_time`), so that a busy machine counts less.

*Study*, over a few trunks whose branches all go on to the end: Δ ln loss against the do-nothing control at the horizon (+N),
after the reference cool-down (annealed) and at the end (final): of interventions, and of the controls that were repeated with
noise. Then, within each snapshot, the rank correlation of what looked good early with what was good at the end, and the regret of
choosing by the early look: final ln loss of the choice less that of the best branch (and of doing nothing).

    python benchmarks/branches.py --json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from trainenv import TrainingRun
from worldmodel.dataset import SIZES, Dataset, Design, Progress, Run, effects, generate, sample
from worldmodel.dataset.corpora import write_texts
from worldmodel.dataset.tables import collect

WIDTHS = {16: 400, 32: 400, 48: 400, 64: 400, 96: 300, 128: 200}
"""Width → budget of the trunk that is timed, in steps: as in a data set, but for the number of snapshots."""


def make_run(overrides: Mapping[str, Any]) -> Run:
    """What `generate` trains."""
    return TrainingRun.from_config("tiny", overrides)


def throughput(width: int, folder: Path) -> dict[str, float]:
    """Of one trunk of this width."""
    size = next(size for size in SIZES if size.width == width)
    (trunk,) = sample(1, seed=0, sizes=(size,), steps=(WIDTHS[width], WIDTHS[width]))
    texts = write_texts(folder / "corpora")
    run = make_run(trunk.overrides(texts))
    run.advance(16)  # the first steps of a process are slow
    started = time.process_time()
    run.advance(48)
    bare = (time.process_time() - started) / 48
    started = time.process_time()
    design = Design(random=1, after_faults=0, fired=0, rewound=0, replicated=0.0)
    tables = collect(trunk, design, make_run, texts)
    seconds = time.process_time() - started
    steps = len(tables["trunk_steps"]) + len(tables["branch_steps"])
    inside = sum(row["phase"] == "branch" for row in tables["branch_steps"])
    return {
        "parameters": tables["trunks"][0]["parameters"],
        "steps_per_core_second": round(steps / seconds, 1),
        "horizon_steps_per_core_second": round(inside / seconds, 1),
        "branches_per_core_minute": round(60 * len(tables["branches"]) / seconds, 1),
        "advance_ms": round(1000 * bare, 2),
        "share_of_bare_advance": round(bare * steps / seconds, 3),
    }


def study(folder: Path, trunks: int, width: int, workers: int, quiet: bool) -> dict[str, Any]:
    """Generate, and compare."""

    def show(progress: Progress) -> None:
        if not quiet:
            left = progress.seconds_left / 60
            print(f"{progress.done} of {progress.total} trunks, {left:.1f} minutes left {progress.error}", flush=True)

    sizes = tuple(dict.fromkeys(size for size in SIZES if size.width == width))
    wanted = sample(trunks, seed=7, sizes=sizes, steps=(300, 600))
    design = Design(random=2, replicated=0.6, continued=1.0)
    report = generate(folder, wanted, make_run, design=design, workers=workers, progress=show)
    data = Dataset.open(folder)
    data.verify()
    found = effects(data)
    return {
        "trunks": len(data.trunks),
        "failed": report.failed,
        "snapshots": len(data.snapshots),
        "branches": len(data.branches),
        "bytes_per_step": round(_size(folder) / max(1, _steps(data)), 1),
        "diverged": int((data.branches["diverged_at"] >= 0).sum()),
        "controls_equal_to_their_trunk": float(data.snapshots["control_is_trunk"].mean()),
        "steps_per_core_second": round(report.steps / max(report.core_seconds, 1e-9), 1),
        "delta_ln_loss": {kind: sizes_of(found[found["kind"] == kind]) for kind in sorted(set(found["kind"]))},
        "by_origin": {
            origin: sizes_of(part[part["kind"].isin(["single", "sequence"])])
            for origin, part in found.merge(data.snapshots[["trunk", "snapshot", "origin"]]).groupby("origin")
        },
        "by_rate": by_rate(found, data),
        "ranks": ranks(found),
        "ranks_where_it_matters": ranks(found, least=0.01),
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "shards").rglob("*.parquet"))


def _steps(data: Dataset) -> int:
    return sum(len(data.trunk_steps(trunk)) + len(data.branch_steps(trunk)) for trunk in data.trunks["trunk"])


def by_rate(found: pd.DataFrame, data: Dataset) -> dict[str, Any]:
    """Mean Δ ln loss, in thousandths, of branches that ended up with a lower or a higher learning rate."""
    scale = np.exp(data.arrays().actions[:, :, 0].sum(axis=1))
    rates = found.merge(data.branches[["trunk", "snapshot", "branch"]].assign(scale=scale))
    groups = {
        "below 0.6": rates["scale"] < 0.6,
        "0.6 to 1.6": rates["scale"].between(0.6, 1.6),
        "above 1.6": rates["scale"] > 1.6,
    }
    tried = rates["kind"].isin(["single", "sequence"])
    return {
        name: {"branches": int((tried & group).sum())}
        | {m: round(1000 * float(rates.loc[tried & group, m].mean()), 2) for m in ("horizon", "annealed", "final")}
        for name, group in groups.items()
    }


def sizes_of(found: pd.DataFrame) -> dict[str, Any]:
    """How large the effects are, in thousandths."""
    sizes: dict[str, Any] = {"branches": len(found)}
    for measure in ("horizon", "annealed", "final"):
        delta = 1000 * found[measure].dropna()
        sizes[measure] = {
            "median_abs": round(float(delta.abs().median()), 2),
            "rms": round(float(np.sqrt((delta**2).mean())), 2),
            "mean": round(float(delta.mean()), 2),
        }
    return sizes


def ranks(found: pd.DataFrame, least: float = 0.0) -> dict[str, Any]:
    """Within each snapshot, over its interventions and the control (Δ = 0); of those whose final Δ deviate by `least` or more."""
    tried = found[found["kind"].isin(["single", "sequence"])]
    rows = []
    for _, group in tried.groupby(["trunk", "snapshot"]):
        measured = pd.concat(
            [group[["horizon", "annealed", "final"]], pd.DataFrame([[0.0] * 3], columns=["horizon", "annealed", "final"])]
        )
        if len(measured) < 4 or measured["final"].isna().any() or (measured.nunique() < 3).any():
            continue
        if float(measured["final"].to_numpy().std()) < least:
            continue
        order, best = measured.rank().corr().to_numpy(), float(measured["final"].to_numpy().min())
        row = {"horizon_final": order[0, 2], "annealed_final": order[1, 2], "horizon_annealed": order[0, 1]}
        for early in ("horizon", "annealed", "final"):
            chosen = float(measured["final"].to_numpy()[int(np.argmin(measured[early].to_numpy()))])
            row[f"regret_{early}"], row[f"over_nothing_{early}"] = chosen - best, chosen
        rows.append(row)
    table = pd.DataFrame(rows)
    if table.empty:
        return {"snapshots": 0}
    return {
        "snapshots": len(table),
        "spearman": {
            name: {
                "mean": round(float(table[name].mean()), 3),
                "standard_error": round(float(table[name].to_numpy().std(ddof=1) / len(table) ** 0.5), 3),
            }
            for name in ("horizon_final", "annealed_final", "horizon_annealed")
        },
        "regret_e3": {name: round(1000 * float(table[f"regret_{name}"].mean()), 2) for name in ("horizon", "annealed")},
        "over_doing_nothing_e3": {
            name: {
                "mean": round(1000 * float(table[f"over_nothing_{name}"].mean()), 2),
                "worse": round(float((table[f"over_nothing_{name}"] > 0).mean()), 3),
            }
            for name in ("horizon", "annealed", "final")
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="*", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--trunks", type=int, default=6, help="of the study; 0 leaves it out")
    parser.add_argument("--width", type=int, default=32, choices=list(WIDTHS), help="of the study's models")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the study's data are kept; a temporary one if left out")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "branches", "throughput": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for width in args.widths:
            result["throughput"][str(width)] = throughput(width, Path(temporary))
            if not args.json:
                print(f"width {width:4}", result["throughput"][str(width)], flush=True)
        if args.trunks:
            folder = args.folder or Path(temporary) / "branches"
            result["study"] = study(folder, args.trunks, args.width, args.workers, args.json)
    print(json.dumps(result) if args.json else json.dumps(result.get("study"), indent=1))


if __name__ == "__main__":
    main()
