"""Time of one verification of six candidates and the control, by three ways to train its branches.

The branches are trained in turn, folded, or in worker processes. Times are wall-clock times,
because several cores only help there. Within a width the ways take turns, so that a slow period of
the machine affects all of them equally. Each round's times are given as ratios to `in_turn`. The
start of the workers, once a run, is reported separately. Every branch takes all its steps: none is
stopped early.

`longest_path` is processor time, of this process plus that of the busiest worker. It is what the
wall-clock time would be if each process had a core of its own: use it when other programs keep the
cores busy.

    python benchmarks/verification.py --json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from trainenv import TrainingRun
from trainenv.rollouts import future, remote
from trainenv.rollouts.executor import NOTHING
from trainenv.types import Candidate, Intervention, Plan, Verdict
from trainenv.verification.verify import Verification

WIDTHS = (32, 64, 128)
SCALES = (0.7, 0.8, 0.9, 0.95, 1.05, 1.1)
PLAN = Plan(
    planner="scripted",
    candidates=(
        *(Candidate(interventions=(Intervention(lr_scale=scale),), score=-0.1) for scale in SCALES),
        Candidate(interventions=NOTHING, score=0.0),
    ),
)


def ways(steps: int, workers: int) -> dict[str, Verification]:
    """Settings of a verification, by the way to train its branches."""
    settings: dict[str, Any] = {"verify_steps": steps, "stopping": None}
    return {
        "in_turn": Verification(**settings, fold=False),
        "folded": Verification(**settings),
        "workers": Verification(**settings, fold=False, workers=workers),
    }


def processor_time() -> list[float]:
    """Processor seconds of this process and of each of its workers."""
    workers = sorted(child.pid or 0 for child in multiprocessing.active_children())
    return [time.process_time(), *(sum(psutil.Process(pid).cpu_times()[:2]) for pid in workers)]


def verified(run: TrainingRun, verification: Verification) -> tuple[float, float, Verdict]:
    """Verify once; return wall-clock seconds, seconds of the longest path, and the verdict."""
    before, started = processor_time(), time.perf_counter()
    rollouts = verification.rollouts(
        run, decision_steps=verification.verify_steps, validation=run.uniform_loss
    )
    verdict = verification.verify(rollouts, PLAN, horizon=4 * verification.verify_steps)
    seconds = time.perf_counter() - started
    ours, *theirs = (after - one for one, after in zip(before, processor_time()))
    return seconds, ours + max(theirs, default=0.0), verdict


def timed(width: int, steps: int, rounds: int, workers: int) -> dict[str, Any]:
    """Measure all ways for models of one width."""
    run = TrainingRun.from_config("tiny", {"model.width": width, "monitor": {"block": 16}})
    run.advance(16)  # the first steps of a process are slow
    try:
        first, *_ = verified(run, ways(1, workers)["workers"])  # starts the workers
        again, *_ = verified(run, ways(1, workers)["workers"])
        seconds: dict[str, list[float]] = {name: [] for name in ways(steps, workers)}
        paths: dict[str, list[float]] = {name: [] for name in seconds}
        losses: dict[str, list[Any]] = {}
        for _ in range(rounds):
            for name, verification in ways(steps, workers).items():
                spent, path, verdict = verified(run, verification)
                seconds[name].append(spent)
                paths[name].append(path)
                losses[name] = [branch.losses for branch in verdict.branches]
    finally:
        remote.dismiss(run)
    ratios, lengths = over(seconds), over(paths)
    return {
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "seconds": {name: round(statistics.median(took), 3) for name, took in seconds.items()},
        "over_in_turn": {name: statistics.median(took) for name, took in ratios.items()},
        "longest_path_over_in_turn": {
            name: statistics.median(took) for name, took in lengths.items()
        },
        "over_in_turn_by_round": ratios,
        "workers_start_seconds": round(first - again, 2),
        "workers_same_bits": losses["workers"] == losses["in_turn"],
    }


def over(took: dict[str, list[float]]) -> dict[str, list[float]]:
    """Ratios of each round's times to those of `in_turn`."""
    return {
        name: [round(one / base, 3) for one, base in zip(times, took["in_turn"])]
        for name, times in took.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="*", default=list(WIDTHS), help="model widths")
    parser.add_argument("--steps", type=int, default=25, help="steps of each branch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each way")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    future.FOLDS_UP_TO = max(
        args.widths
    )  # models of every width are folded, to show at which widths that is faster
    result: dict[str, Any] = {
        "benchmark": "verification",
        "branches": len(SCALES) + 1,
        "steps": args.steps,
        "workers": args.workers,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "widths": {},
    }
    for width in args.widths:
        found = result["widths"][str(width)] = timed(width, args.steps, args.rounds, args.workers)
        if not args.json:
            took = "  ".join(
                f"{name} {found['seconds'][name]} s (×{ratio})"
                for name, ratio in found["over_in_turn"].items()
            )
            print(
                f"width {width:3}: {took}  start of the workers {found['workers_start_seconds']} s",
                flush=True,
            )
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
