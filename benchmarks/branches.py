"""Counterfactual branches: how fast they are made, and how large what they measure is against its noise.

*Throughput*, by width, in optimizer steps per core-second: a run by itself against 4, 8 and 16 forks of it folded into one, in
turns; then whole trunks with all their branches (validation, restoring, writing and reading back of telemetry included), one
branch after the other against folded by 16, and how much a bare `advance` takes of the former. Times are of the process
(`time.process_time`), so that a busy machine counts less.

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
from trainenv.rollouts.folded import Folded
from trainenv.types import Fold
from trainenv.worldmodel.dataset import (
    SIZES,
    Dataset,
    Design,
    Progress,
    Run,
    Trunk,
    effects,
    generate,
    sample,
)
from trainenv.worldmodel.dataset.tables import collect
from trainenv.worldmodel.dataset.texts import Texts, write_texts

WIDTHS = {16: 400, 32: 400, 48: 400, 64: 400, 96: 300, 128: 200}
"""Width → budget of the trunk that is timed, in steps: as in a data set, but for the number of snapshots."""
FOLDS = (4, 8, 16)
TIMED = Design(
    random=1,
    after_faults=0,
    fired=0,
    rewound=0,
    exhaustive=0.0,
    replicated=0.0,
    fold=(max(WIDTHS), max(FOLDS)),
)
"""One snapshot a trunk; models of every width are folded, so that it shows where that pays."""


def make_run(overrides: Mapping[str, Any]) -> Run:
    """What `generate` trains."""
    return TrainingRun.from_config("tiny", overrides)


def throughput(width: int, folder: Path) -> dict[str, Any]:
    """Of one trunk of this width."""
    size = next(size for size in SIZES if size.width == width)
    (trunk,) = sample(1, seed=0, sizes=(size,), steps=(WIDTHS[width], WIDTHS[width]))
    texts = write_texts(folder / "corpora")
    run = make_run(trunk.overrides(texts))
    run.advance(16)  # the first steps of a process are slow
    bare = steps_per_core_second(run)
    whole = {
        name: whole_trunk(trunk, texts, fold)
        for name, fold in (("looped", None), ("folded", Folded))
    }
    return {
        "parameters": size.parameters,
        "tokens_a_step": size.batch_size * size.context,
        "steps_per_core_second": {"alone": bare[1]}
        | {f"folded_{count}": bare[count] for count in FOLDS},
        "folded_over_alone": {
            f"folded_{count}": round(bare[count] / bare[1], 2) for count in FOLDS
        },
        "trunk_with_branches": whole,
        "trunk_folded_over_looped": round(
            whole["folded"]["steps_per_core_second"] / whole["looped"]["steps_per_core_second"], 2
        ),
        "share_of_bare_advance": round(whole["looped"]["steps_per_core_second"] / bare[1], 3),
    }


def steps_per_core_second(run: Run, rounds: int = 4, steps: int = 8) -> dict[int, float]:
    """Of K forks of a run, by K: 1 is the run by itself.

    They take turns, so that a slow spell of the machine hits all alike.
    """
    alone, folded = (
        run.fork(),
        {count: Folded([run.fork() for _ in range(count)]) for count in FOLDS},
    )
    advance = {1: alone.advance} | {count: fold.advance for count, fold in folded.items()}
    seconds = dict.fromkeys(advance, 0.0)
    for lap in range(rounds + 1):
        for count, train in advance.items():
            started = time.process_time()
            train(steps)
            seconds[count] += time.process_time() - started if lap else 0.0  # the first warms up
    return {count: round(count * rounds * steps / spent, 1) for count, spent in seconds.items()}


def whole_trunk(trunk: Trunk, texts: Texts, fold: Fold | None) -> dict[str, float]:
    """A trunk and all its branches."""
    started = time.process_time()
    tables = collect(trunk, TIMED, make_run, texts, fold)
    seconds = time.process_time() - started
    steps = len(tables["trunk_steps"]) + len(tables["branch_steps"])
    inside = sum(row["phase"] == "branch" for row in tables["branch_steps"])
    return {
        "steps_per_core_second": round(steps / seconds, 1),
        "horizon_steps_per_core_second": round(inside / seconds, 1),
        "branches_per_core_minute": round(60 * len(tables["branches"]) / seconds, 1),
    }


def study(folder: Path, trunks: int, width: int, workers: int, quiet: bool) -> dict[str, Any]:
    """Generate, and compare."""

    def show(progress: Progress) -> None:
        if not quiet:
            left = progress.seconds_left / 60
            print(
                f"{progress.done} of {progress.total} trunks, {left:.1f} minutes left "
                f"{progress.error}",
                flush=True,
            )

    sizes = tuple(dict.fromkeys(size for size in SIZES if size.width == width))
    wanted = sample(trunks, seed=7, sizes=sizes, steps=(300, 600))
    design = Design(random=2, exhaustive=0.0, replicated=0.6, continued=1.0)
    report = generate(
        folder, wanted, make_run, design=design, fold=Folded, workers=workers, progress=show
    )
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
        "controls_off_their_trunk_e3": off_their_trunk(data),
        "steps_per_core_second": round(report.steps / max(report.core_seconds, 1e-9), 1),
        "delta_ln_loss": {
            kind: sizes_of(found[found["kind"] == kind]) for kind in sorted(set(found["kind"]))
        },
        "by_origin": {
            origin: sizes_of(part[part["kind"].isin(["single", "sequence"])])
            for origin, part in found.merge(
                data.snapshots[["trunk", "snapshot", "origin"]]
            ).groupby("origin")
        },
        "by_rate": by_rate(found, data),
        "ranks": ranks(found),
        "ranks_where_it_matters": ranks(found, least=0.01),
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "shards").rglob("*.parquet"))


def _steps(data: Dataset) -> int:
    return sum(
        len(data.trunk_steps(trunk)) + len(data.branch_steps(trunk))
        for trunk in data.trunks["trunk"]
    )


def off_their_trunk(data: Dataset) -> dict[str, float]:
    """How far rounding drives a folded control from the trunk going on, to the end: |Δ ln final loss|, in thousandths."""
    controls = data.branches[data.branches["kind"] == "control"].merge(
        data.trunks[["trunk", "final"]], on="trunk", suffixes=("", "_trunk")
    )
    off = 1000 * np.abs(
        np.log(controls["final"].astype(float)) - np.log(controls["final_trunk"].astype(float))
    )
    return {"median": round(float(off.median()), 3), "most": round(float(off.max()), 3)}


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
        | {
            m: round(1000 * float(rates.loc[tried & group, m].mean()), 2)
            for m in ("horizon", "annealed", "final")
        }
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
            [
                group[["horizon", "annealed", "final"]],
                pd.DataFrame([[0.0] * 3], columns=["horizon", "annealed", "final"]),
            ]
        )
        if len(measured) < 4 or measured["final"].isna().any() or (measured.nunique() < 3).any():
            continue
        if float(measured["final"].to_numpy().std()) < least:
            continue
        order, best = measured.rank().corr().to_numpy(), float(measured["final"].to_numpy().min())
        row = {
            "horizon_final": order[0, 2],
            "annealed_final": order[1, 2],
            "horizon_annealed": order[0, 1],
        }
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
                "standard_error": round(
                    float(table[name].to_numpy().std(ddof=1) / len(table) ** 0.5), 3
                ),
            }
            for name in ("horizon_final", "annealed_final", "horizon_annealed")
        },
        "regret_e3": {
            name: round(1000 * float(table[f"regret_{name}"].mean()), 2)
            for name in ("horizon", "annealed")
        },
        "over_doing_nothing_e3": {
            name: {
                "mean": round(1000 * float(table[f"over_nothing_{name}"].mean()), 2),
                "worse": round(float((table[f"over_nothing_{name}"] > 0).mean()), 3),
            }
            for name in ("horizon", "annealed", "final")
        },
    }


def line(width: int, found: Mapping[str, Any]) -> str:
    """Of the table for people."""
    bare, whole = found["steps_per_core_second"], found["trunk_with_branches"]
    folds = "  ".join(
        f"{name} {bare[name]:7} (×{ratio})" for name, ratio in found["folded_over_alone"].items()
    )
    trunk = f"looped {whole['looped']['steps_per_core_second']}, folded {whole['folded']['steps_per_core_second']}"
    return f"width {width:3}: alone {bare['alone']:6}  {folds}  trunk with branches: {trunk} steps per core-second"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="*", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--trunks", type=int, default=6, help="of the study; 0 leaves it out")
    parser.add_argument(
        "--width", type=int, default=32, choices=list(WIDTHS), help="of the study's models"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="where the study's data are kept; a temporary one if left out"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "branches", "throughput": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for width in args.widths:
            result["throughput"][str(width)] = throughput(width, Path(temporary))
            if not args.json:
                print(line(width, result["throughput"][str(width)]), flush=True)
        if args.trunks:
            folder = args.folder or Path(temporary) / "branches"
            result["study"] = study(folder, args.trunks, args.width, args.workers, args.json)
    if args.json:
        print(json.dumps(result))
    elif args.trunks:
        print(json.dumps(result["study"], indent=1))


if __name__ == "__main__":
    main()
