"""What rounding the optimizer's moments costs: how far a run drifts that goes on from a compact checkpoint.

A run is trained into the middle of its budget. From there it goes on over the same batches, once
exactly and once from each of:

    1 ulp           one weight one unit in the last place higher, the moments exact: as little as
    can differ, so what it grows
                    to is the floor that any rounding at all drifts to
    8bit            our tier, through a file and back 8bit signed     the same, with m rounded by
    itself and quadratically (the code `signed`) instead of the direction m/√v bitsandbytes    its
    dynamic 8-bit codes on m and on √v in blocks of 256 (left out where it is not installed) bf16
    m and v rounded to bfloat16 lost, warm-up   moments and step count zeroed, the learning rate
    warmed up again: `Intervention(momentum_reset=True)` lost, bare      moments and step count
    zeroed, nothing else

All four ways to round leave tensors below 4096 elements alone. Of each, at several horizons,
against the exact run: the mean absolute difference of the training loss over the last 10 steps, the
difference of validation loss (above 0: worse), and weight drift, ‖w − w_exact‖ ÷ ‖w_exact −
w_start‖; after one step this is the error of the first update. The biases of the attention's keys
are left out of it: no loss depends on them, their gradient is rounding noise, and Adam blows that
up to full steps. In `tiny` most of the drift is the embedding's: a block of 256 spans four tokens'
rows there, frequent and rare ones, which from a width of 256 on it never does.

Losses are in nats. Figures are means over seeds with the least and the greatest. About five minutes
on a quiet core; `mini` has batches of 2 × 64 tokens and a tenth of the steps, or it alone would
take an hour.

    python benchmarks/drift.py --json
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainenv import Intervention, Snapshot, TrainingRun
from trainenv.checkpoints import file, quantiser
from trainenv.tools.optional import is_installed
from trainenv.training.optimizers import reset_moments

LAST = 10  # steps that the training loss is averaged over
FIGURES = ("loss", "validation", "weights")
NUDGED = "model/transformer.h.0.mlp.c_fc.weight"

Start = Callable[[TrainingRun, Snapshot], None]  # puts a run where it goes on from
Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # m and v → what is left of them


@dataclass(frozen=True)
class Case:
    """A preset, the step that runs branch at, and the share of `--steps` that they go on for."""

    overrides: dict[str, Any]
    start: int
    share: float = 1.0


CASES = {
    "tiny": Case({"validation.sequences": 64}, 300),
    "mini": Case({"batch_size": 2, "model.context": 64, "validation.sequences": 16}, 150, 0.1),
}


@dataclass(frozen=True)
class Seen:
    """A run at a horizon."""

    losses: Tensor
    validation: float
    weights: Tensor


# ── what to go on from ────────────────────────────────────────────────────────────────────────────


def starts() -> dict[str, Start]:
    """Every way to go on but the exact one."""
    found: dict[str, Start] = {
        "1 ulp": nudged,
        "8bit": through_a_file,
        "8bit signed": partial(rounded, by=signed),
        "bitsandbytes": partial(rounded, by=dynamic),
        "bf16": partial(rounded, by=lambda m, v: (m.bfloat16().float(), v.bfloat16().float())),
        "lost, warm-up": lost_and_warmed_up,
        "lost, bare": lost,
    }
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # it warns of kernels that nobody asked for
    if not is_installed("bitsandbytes"):
        print(
            "bitsandbytes is not installed, its row is left out; pip install "
            "'trainenv[benchmarks]'",
            file=sys.stderr,
        )
        del found["bitsandbytes"]
    return found


def nudged(run: TrainingRun, snapshot: Snapshot) -> None:
    weight = snapshot.tensors[NUDGED].clone()
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
    run.restore(replace(snapshot, tensors={**snapshot.tensors, NUDGED: weight}))


def through_a_file(run: TrainingRun, snapshot: Snapshot) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot"
        file.write(snapshot, path, tier="8bit")
        run.restore(file.read(path))


def lost(run: TrainingRun, snapshot: Snapshot) -> None:
    run.restore(snapshot)
    reset_moments(run.optimizer)


def lost_and_warmed_up(run: TrainingRun, snapshot: Snapshot) -> None:
    run.restore(snapshot)
    run.apply(Intervention(momentum_reset=True))


def rounded(run: TrainingRun, snapshot: Snapshot, by: Pair) -> None:
    """Go on from moments that were rounded, those that the 8bit tier rounds."""
    tensors = dict(snapshot.tensors)
    for second in [name for name, kind in quantiser.kinds(tensors).items() if kind == "root"]:
        first = second.removesuffix("_sq")
        tensors[first], tensors[second] = by(tensors[first], tensors[second])
    run.restore(replace(snapshot, tensors=tensors))


def signed(m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Ours, but m by itself."""

    def there_and_back(kind: quantiser.Kind, moment: Tensor) -> Tensor:
        flat = moment.flatten().numpy()
        out = np.empty_like(flat)
        for start in range(0, len(flat), quantiser.STRETCH):
            piece = slice(start, start + quantiser.STRETCH)
            codes, scales = quantiser.quantise("a moment", kind, flat[piece], None)
            quantiser.dequantise(kind, codes, scales, None, out[piece])
        return torch.from_numpy(out).view_as(moment)

    return there_and_back("signed", m), there_and_back("root", v)


def dynamic(m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The 8-bit codes of bitsandbytes, m's signed and √v's not."""
    import bitsandbytes.functional as bnb

    def there_and_back(moment: Tensor, signed: bool) -> Tensor:
        code = bnb.create_dynamic_map(signed=signed)
        return bnb.dequantize_blockwise(
            *bnb.quantize_blockwise(moment, code=code, blocksize=quantiser.BLOCK)
        )

    return there_and_back(m, True), there_and_back(v.sqrt(), False).square()


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────


def branches(
    preset: str, seed: int, horizons: Sequence[int], ways: dict[str, Start]
) -> dict[str, Any]:
    """One seed: what the exact run did, and by horizon and way to go on how far that was off."""
    case = CASES[preset]
    overrides = {**case.overrides, "seed": seed, "threads": 1, "monitor.enabled": False}
    run = TrainingRun.from_config(preset, overrides)
    run.advance(case.start)
    before, start, snapshot = run.evaluate(), weights(run), run.snapshot()
    exact = follow(run, horizons)
    off: dict[str, dict[str, dict[str, float]]] = {str(horizon): {} for horizon in horizons}
    for name, way in ways.items():
        way(run, snapshot)
        for horizon, true, seen in zip(horizons, exact, follow(run, horizons)):
            off[str(horizon)][name] = {
                "loss": float((seen.losses - true.losses)[-LAST:].abs().mean()),
                "validation": seen.validation - true.validation,
                "weights": float(
                    (seen.weights - true.weights).norm() / (true.weights - start).norm()
                ),
            }
    return {
        "validation": {"0": before} | {str(h): seen.validation for h, seen in zip(horizons, exact)},
        "off": off,
    }


def follow(run: TrainingRun, horizons: Sequence[int]) -> list[Seen]:
    """Go on, and look at every horizon."""
    losses: list[float] = []
    seen = []
    for horizon in horizons:
        losses += [telemetry.loss for telemetry in run.advance(horizon - len(losses))]
        seen.append(Seen(torch.tensor(losses, dtype=torch.float64), run.evaluate(), weights(run)))
    return seen


def weights(run: TrainingRun) -> Tensor:
    """All that matter, in a row, [n] float64."""

    def kept(name: str, parameter: Tensor) -> Tensor:
        flat = parameter.detach().flatten()
        return (
            torch.cat(flat.chunk(3)[::2]) if name.endswith("c_attn.bias") else flat
        )  # of queries, keys and values

    return torch.cat(
        [kept(name, parameter) for name, parameter in run.model.named_parameters()]
    ).double()


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}


def measure(
    preset: str, seeds: Sequence[int], steps: int, ways: dict[str, Start]
) -> dict[str, Any]:
    """Everything about a preset, over seeds."""
    longest = max(1, round(steps * CASES[preset].share))
    horizons = [horizon for horizon in (1, 10, 100, 1000) if horizon < longest] + [longest]
    found = []
    for seed in seeds:
        started = time.perf_counter()
        found.append(branches(preset, seed, horizons, ways))
        print(
            f"{preset}, seed {seed}: {time.perf_counter() - started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    off = {
        str(horizon): {
            name: {
                what: summary([one["off"][str(horizon)][name][what] for one in found])
                for what in FIGURES
            }
            for name in ways
        }
        for horizon in horizons
    }
    # Which way to round m drifts less: above 1, ours does. Pairs of the same seed.
    choice = {
        str(horizon): summary(
            [
                one["off"][str(horizon)]["8bit signed"]["weights"]
                / one["off"][str(horizon)]["8bit"]["weights"]
                for one in found
            ]
        )
        for horizon in horizons
    }
    return {
        "start": CASES[preset].start,
        "overrides": CASES[preset].overrides,
        "horizons": horizons,
        "validation": {
            at: summary([one["validation"][at] for one in found]) for at in found[0]["validation"]
        },
        "off": off,
        "signed_over_8bit": choice,
    }


# ── telling ───────────────────────────────────────────────────────────────────────────────────────


def show(preset: str, result: dict[str, Any]) -> None:
    validation = ", ".join(
        f"{at}: {value['mean']:.3f}" for at, value in result["validation"].items()
    )
    print(
        f"\n{preset}, from step {result['start']}; validation loss of the exact run after so many "
        f"more steps: {validation}"
    )
    for horizon, rows in result["off"].items():
        print(
            f"\n  {f'after {horizon} steps':15} {'|Δ training loss|':>32} "
            f"{'Δ validation loss':>34} {'weight drift':>32}"
        )
        for name, row in rows.items():
            print(
                f"  {name:15} {spread(row['loss']):>32} {spread(row['validation'], '+'):>34} "
                f"{spread(row['weights']):>32}"
            )
    pairs = "; ".join(
        f"{horizon}: {spread(value)}" for horizon, value in result["signed_over_8bit"].items()
    )
    print(f"\n  weight drift of 8bit signed ÷ 8bit after so many steps: {pairs}", flush=True)


def spread(value: dict[str, float], sign: str = "") -> str:
    return f"{value['mean']:{sign}.2g} ({value['min']:{sign}.2g} … {value['max']:{sign}.2g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--steps", type=int, default=1000, help="the longest horizon; mini goes a tenth of it"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on the last line"
    )
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be 1 or more, found {args.steps}")
    ways, results = starts(), {}
    for preset in args.presets:
        results[preset] = measure(preset, args.seeds, args.steps, ways)
        show(preset, results[preset])
    if args.json:
        print(
            json.dumps(
                {
                    "benchmark": "drift",
                    "seeds": args.seeds,
                    "block": quantiser.BLOCK,
                    "presets": results,
                }
            )
        )


if __name__ == "__main__":
    main()
